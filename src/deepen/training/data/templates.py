"""Chat templates: the model's own, and the one that marks what the assistant says."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepen.common.bounded import read_text
from deepen.training.data.turns import in_parts
from deepen.training.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_PROBE = "deepen asks whether this is read"


def with_template(data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a tokenizer the recipe's chat template, if it names one.

    Raises:
        DeepenError: The file cannot be read.
    """
    if data.chat_template is None:
        return
    tokenizer.chat_template = read_text(data.chat_template)


def own_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the template that a tokenizer writes conversations with, if it has one."""
    template: object = tokenizer.chat_template
    if isinstance(template, Mapping):  # several by name, as Command-R has them
        template = template.get("default")
    return template if isinstance(template, str) else None


def marked_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a template with ``{% generation %}`` marks around what the assistant says.

    That is the tokenizer's own if it has them, else the training template that TRL ships for it.

    Returns:
        ``None`` if there is neither.
    """
    from trl.chat_template_utils import get_training_chat_template

    own = own_template(tokenizer)
    if own is None or _GENERATION.search(own):
        return own
    try:
        template: object = get_training_chat_template(tokenizer)
    except Exception:  # it says so that it knows none, or the template raises what it likes
        return None
    return template if isinstance(template, str) else None


def reads_parts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes content only if it comes in parts, and drops it as plain text.

    Those of vision-language models are such.
    """
    own = own_template(tokenizer)
    return (
        own is not None
        and not _writes(tokenizer, own, _PROBE)
        and (_writes(tokenizer, own, in_parts(_PROBE)))
    )


def _writes(tokenizer: "PreTrainedTokenizerBase", template: str, content: object) -> bool:
    """Whether a user's words come through."""
    turns: Any = [{"role": "user", "content": content}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template)
    except Exception:  # the templates raise what they like
        return False
    return _PROBE in str(text)
