"""Text as a model's tokens: its tokenizer, and a short text to read when none is given."""

from pathlib import Path
from typing import TYPE_CHECKING

from deepen.base.checkpoint import FolderSource, Source
from deepen.common.bounded import read_json
from deepen.common.errors import DeepenError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGE = """\
A river does not grow by hurrying. It takes up what the hills give it, stone by stone and stream by
stream, and only where the ground allows does it cut deeper. Engineers who straighten rivers learn
this late: the water remembers the bends, and after every flood it asks for them back.

In 1854 a physician marked the cholera deaths of one London district on a map. Most of the 578 dots
lay around a single pump. He had no microscope that could show him the cause, only counting, a
street plan, and the patience to ask at every door which water the family had drunk.

def median(values):
    ordered = sorted(values)
    middle, odd = divmod(len(ordered), 2)
    if odd:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2

Question: a train leaves at 14:35 and arrives at 17:10. How long is the journey? Answer: two hours
and thirty-five minutes, because from 14:35 to 17:00 are 2 h 25 min and ten minutes remain.
"Non è vero," said the old man, and then, as if to himself: « peut-être demain ».
"""


def tokenizer_of(source: Source) -> "PreTrainedTokenizerBase":
    """Load the tokenizer that lies beside a checkpoint's weights; code of its own is never run.

    Raises:
        DeepenError: There is none, it is damaged, or it is custom code.
    """
    from transformers import AutoTokenizer

    if not isinstance(source, FolderSource):
        raise DeepenError(
            f"{source.name} is a live module without a tokenizer; save it beside one, and name "
            f"that folder."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
        # Without their files some classes make one of special tokens alone.
        if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            return tokenizer
        reason = "without words"
    except Exception as error:  # many types, for files that are missing or damaged
        reason = " ".join(str(error).split())[:200]
    if code := tokenizer_code(source.folder):
        raise DeepenError(
            f"The tokenizer of {source.name} is custom code ({code}), which deepen never runs; "
            f"give a folder with a tokenizer.json that transformers loads by itself."
        )
    raise DeepenError(
        f"{source.name} has no tokenizer that loads ({reason}); copy the tokenizer's files of its "
        f"base into the folder."
    )


def opening(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the special tokens that a tokenizer puts in front of every text: BOS, or none.

    A model that never saw a text without them may be lost there: Gemma 3 270M's loss on a manual
    is 6.1 nats per token without BOS and 3.8 with it.
    """
    bare, whole = (
        tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"]
        for special in (False, True)
    )
    starts = range(len(whole) - len(bare) + 1)
    return whole[: next((i for i in starts if whole[i : i + len(bare)] == bare), 0)]


def tokenizer_code(folder: Path) -> str | None:
    """Return the class that tokenizer_config.json asks custom code for, ``file.Class``."""
    try:
        content = read_json(folder / "tokenizer_config.json")
        named = content["auto_map"]
        classes = named["AutoTokenizer"] if isinstance(named, dict) else named
    except (DeepenError, KeyError, TypeError):
        return None
    listed = classes if isinstance(classes, list) else [classes]
    return next((entry for entry in reversed(listed) if isinstance(entry, str)), None)
