"""Files that one process writes once and all processes, and later runs, read."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.common.bounded import read_json
from deepen.common.files import whole, write_whole
from deepen.training.data.rows import local_files
from deepen.training.processes import local_rank
from deepen.training.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_POLL_SECONDS = 0.2


def cached(
    folder: Path, key: str, suffix: str, write: Callable[[Path], Mapping[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """Return a file and what is known of it, writing both if they are not there.

    Of several processes on a machine only the first writes; the others wait for it. If it fails,
    the launcher ends them.

    Args:
        folder: Where the files lie.
        key: Tells contents apart.
        suffix: Of the file.
        write: Writes the file and returns what is to be known of it.
    """
    file, notes = folder / f"{key}{suffix}", folder / f"{key}.meta.json"
    if local_rank() == 0 and not notes.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with whole(file) as unfinished:
                facts = write(unfinished)
            write_whole(notes, json.dumps(dict(facts)))
        except BaseException:
            with suppress(OSError):  # they hold something else
                folder.rmdir()
                folder.parent.rmdir()
            raise
    while not notes.is_file():
        time.sleep(_POLL_SECONDS)
    return file, read_json(notes)


def key_of(data: DataConfig, tokenizer: "PreTrainedTokenizerBase", **more: object) -> str:
    """Return a short hash of everything that decides the tokens of a data set."""
    asked = data.model_dump(exclude={"cache", "seed", "path", "streaming", "mix"})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    files = local_files(data)
    source = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    parts = [asked, source or data.path, words, tokenizer.eos_token_id, more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
