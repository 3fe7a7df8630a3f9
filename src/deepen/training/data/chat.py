"""Fine-tuning data: questions and answers as token ids, and labels on the answers only."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.common.errors import DeepenError
from deepen.training.data.rows import Row, capitalised
from deepen.training.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that the loss leaves out."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# The prompts of Stanford Alpaca, which GPT-4's answers (Alpaca-GPT4) were made for as well.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""Form of chat rows → the columns that make it."""

Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    ids: list[int]
    """Token ids."""
    labels: list[int]
    """The same where the loss is taken, ``IGNORED`` elsewhere."""


class Reader:
    """Turns rows into examples."""

    def __init__(self, data: DataConfig, tokenizer: "PreTrainedTokenizerBase", first: Row) -> None:
        """Choose how to read, after the recipe or the first row's columns.

        Raises:
            DeepenError: The columns are of no known form, or the tokenizer lacks what they need.
        """
        self._data, self._tokenizer = data, tokenizer
        self._form = data.format if data.format != "auto" else _form_of(first, data)
        self._columns = COLUMNS.get(self._form, (data.text_column,))
        if self._form == "text" and data.loss == "answer":
            raise DeepenError(
                f"The rows have only a column {data.text_column!r}, and nothing tells which part "
                f"of it is the answer; set data.loss=all."
            )
        if tokenizer.eos_token_id is None:
            raise DeepenError(
                "The tokenizer has no end-of-text token to end an answer with; set eos_token in "
                "the checkpoint's tokenizer_config.json."
            )

    def read(self, row: Row) -> Example:
        """Turn one row into an example.

        Raises:
            DeepenError: A column is missing or not of its form.
        """
        for column in self._columns:
            if row.columns.get(column) is None:
                raise DeepenError(
                    f"{capitalised(row.where)} lacks the column {column!r} "
                    f"({self._form.replace('_', '/')} rows have: {', '.join(self._columns)})."
                )
        reads: Mapping[str, Callable[[Row], Example]] = {
            "messages": self._messages,
            "prompt_completion": self._prompt_completion,
            "alpaca": self._alpaca,
            "text": self._text,
        }
        return reads[self._form](row)

    def _text(self, row: Row) -> Example:
        """Read plain text."""
        ids = [*self._encode(row.columns[self._data.text_column]), self._eos]
        return Example(ids, list(ids))

    def _alpaca(self, row: Row) -> Example:
        """Read instruction, input and output."""
        form = _WITH_INPUT if row.columns.get("input") else _WITHOUT_INPUT
        return self._answer(form.format_map(row.columns), row.columns["output"])

    def _prompt_completion(self, row: Row) -> Example:
        """Read a prompt and its completion, both texts or both lists of messages."""
        prompt, completion = row.columns["prompt"], row.columns["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._answer(prompt, completion)
        turns = [*_turns(prompt, row), *_turns(completion, row)]
        start = len(self._render(turns[: len(prompt)], row, prompted=True))
        text = self._render(turns, row)
        return self._spans(text, [(start, len(text))])

    def _answer(self, prompt: str, completion: str) -> Example:
        """Join a prompt and an answer, tokenised apart as they are when the model is used."""
        before = self._encode(prompt, special=True)
        after = [*self._encode(completion), self._eos]
        masked = [IGNORED] * len(before) if self._data.loss == "answer" else before
        return Example(before + after, masked + after)

    def _messages(self, row: Row) -> Example:
        """Read a conversation; its answers are the assistant's turns."""
        turns = _turns(row.columns["messages"], row)
        if _GENERATION.search(self._template(row)) and self._data.loss == "answer":
            encoded: Any = self._tokenizer.apply_chat_template(
                _plain(turns), return_dict=True, return_assistant_tokens_mask=True
            )
            ids, mask = encoded["input_ids"], encoded["assistant_masks"]
            return Example(ids, [i if m else IGNORED for i, m in zip(ids, mask, strict=True)])
        text = self._render(turns, row)
        spans = []
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant" or self._data.loss == "all":
                continue
            before = self._render(turns[:index], row, prompted=True)
            after = self._render(turns[: index + 1], row)
            if not (text.startswith(after) and after.startswith(before)):
                raise DeepenError(
                    f"The chat template writes the turns of {row.where} differently when later "
                    f"ones follow, so the answers cannot be found; give data.chat_template a "
                    f"template with {{% generation %}} marks, or set data.loss=all."
                )
            spans.append((len(before), len(after)))
        return self._spans(text, spans)

    def _spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Example:
        """Tokenise rendered text; the tokens that begin inside a span have labels."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        if self._data.loss == "all":
            return Example(ids, list(ids))
        inside = [any(low <= start < high for low, high in spans) for start in starts]
        return Example(ids, [i if yes else IGNORED for i, yes in zip(ids, inside, strict=True)])

    def _render(self, turns: Sequence[Turn], row: Row, *, prompted: bool = False) -> str:
        """Write turns as the chat template does.

        Raises:
            DeepenError: The template does not take these turns.
        """
        self._template(row)
        try:
            text: Any = self._tokenizer.apply_chat_template(
                _plain(turns), tokenize=False, add_generation_prompt=prompted
            )
        except Exception as error:  # the templates raise what they like
            raise DeepenError(
                f"The chat template does not take the turns of {row.where} ({error})."
            ) from None
        return str(text)

    def _template(self, row: Row) -> str:
        """Return the chat template.

        Raises:
            DeepenError: There is none.
        """
        template = self._tokenizer.chat_template
        if not isinstance(template, str):
            raise DeepenError(
                f"{capitalised(row.where)} holds messages, but the tokenizer has no chat template "
                f"to write them with; name a Jinja file in data.chat_template, or give rows with "
                f"prompt and completion."
            )
        return template

    def _encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokenise text, with the tokenizer's own start of a text if it is one."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return ids[:-1] if ids and ids[-1] == self._eos and special else ids

    @property
    def _eos(self) -> int:
        """The end-of-text token."""
        return int(self._tokenizer.eos_token_id)


def with_template(data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a tokenizer the recipe's chat template, if it names one.

    Raises:
        DeepenError: The file cannot be read.
    """
    if data.chat_template is None:
        return
    try:
        tokenizer.chat_template = Path(data.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeepenError(
            f"The chat template {data.chat_template!r} cannot be read ({error})."
        ) from None


def _form_of(row: Row, data: DataConfig) -> str:
    """Guess the form of the rows from the columns of the first."""
    for form, columns in COLUMNS.items():
        if set(columns) <= row.columns.keys():
            return form
    if data.text_column in row.columns:
        return "text"
    raise DeepenError(
        f"{capitalised(row.where)} has the columns {', '.join(row.columns)}; fine-tuning reads "
        f"messages, or prompt and completion, or instruction and output."
    )


def _turns(value: object, row: Row) -> list[Turn]:
    """Insist on a list of messages."""
    turns = value if isinstance(value, list) else []
    sound = (isinstance(t, Mapping) and {"role", "content"} <= t.keys() for t in turns)
    if not turns or not all(sound):
        raise DeepenError(
            f"{capitalised(row.where)} holds no messages with role and content where they are "
            f"expected."
        )
    return turns


def _plain(turns: Sequence[Turn]) -> Any:  # noqa: ANN401 (what transformers takes)
    """Copy messages, for templates that change them."""
    return [dict(turn) for turn in turns]
