"""Chat rows as a model reads them: which tokens are answers, and whose loss counts."""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from deepen.common.errors import DeepenError
from deepen.training.data.chat import COLUMNS, IGNORED, Example, Reader
from deepen.training.data.files import file_rows
from deepen.training.data.rows import rows
from deepen.training.data.templates import own_template
from deepen.training.recipe import DataConfig

TEXT = "text"
"""The column that holds a document."""


def are_rows(file: Path) -> bool:
    """Whether a file holds chat rows, judged by the first: no document, but columns of a chat.

    Raises:
        DeepenError: The file cannot be read.
    """
    first = next(file_rows(file, TEXT, None), None)
    names = first.columns.keys() if first else set[str]()
    return TEXT not in names and any(names >= set(columns) for columns in COLUMNS.values())


def read_answers(
    file: Path,
    tokenizer: Any,  # noqa: ANN401 (a class of transformers)
    length: int,
    max_tokens: int | None = None,
) -> Iterator[tuple[Example, int]]:
    """Yield rows as supervised fine-tuning reads them, up to a number of answers' tokens.

    A row is cut at ``length`` tokens; one whose answers begin behind that is left out.

    Args:
        file: A file of chat rows.
        tokenizer: The model's, with its chat template.
        length: Tokens of a row, at most.
        max_tokens: Where to stop, in answers' tokens.

    Returns:
        Each row's token ids and labels, and the UTF-8 bytes of its answers without special tokens.

    Raises:
        DeepenError: A row is damaged, or the model has no chat template where one is needed.
    """
    data = DataConfig(path=str(file), sequence_length=length)
    read = rows(data, 0)
    first = next(read)
    if {"messages", "conversations"} & first.columns.keys() and own_template(tokenizer) is None:
        raise DeepenError(
            f"{file.name!r} holds messages, but the model has no chat template to write them with; "
            f"evaluate one that has, or give rows with prompt and completion."
        )
    reader = Reader(data, tokenizer, first)
    left = max_tokens
    for row in chain([first], read):
        if (whole := reader.read(row)) is None:
            continue
        example = _cut(whole, length, left)
        count = counted(example.labels)
        if count:
            yield example, _bytes(example, tokenizer)
        if left is not None:
            left -= count
            if left < 1:
                return


def counted(labels: Sequence[int]) -> int:
    """Return how many tokens are predicted; the first one cannot be."""
    return len(_places(labels))


def _places(labels: Sequence[int]) -> list[int]:
    """Return where labels stand that count."""
    return [place for place in range(1, len(labels)) if labels[place] != IGNORED]


def _cut(example: Example, length: int, left: int | None) -> Example:
    """Cut an example at a length, and behind so many labels, or else the last one."""
    places = _places(example.labels[:length])[:left]
    end = places[-1] + 1 if places else 0
    return Example(example.ids[:end], example.labels[:end])


def _bytes(example: Example, tokenizer: Any) -> int:  # noqa: ANN401
    """Count the bytes of an example's answers, each decoded alone."""
    runs = groupby(example.labels[1:], key=lambda label: label != IGNORED)
    answers = [list(run) for is_answer, run in runs if is_answer]
    texts = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in answers
    )
    return sum(len(text.encode()) for text in texts)
