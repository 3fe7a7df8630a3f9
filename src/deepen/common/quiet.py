"""Keep the libraries' bars and remarks off the terminal, and torch out where nothing needs it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def keep_torch_out() -> None:
    """Let transformers read configs as it does where torch is not installed.

    Its config classes import torch and much that stands on it, where there is one, for nothing that
    a config says: 5 of the 7 seconds that a look at a checkpoint takes. Only for a process that
    builds no model, since transformers finds no torch in it from then on.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type] # so that importing it fails
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch


def let_torch_in() -> None:
    """Let torch be imported again, for what turns out to need it: pickled weights."""
    if sys.modules.get("torch", sys) is None:
        del sys.modules["torch"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' bars and warnings for a while."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
