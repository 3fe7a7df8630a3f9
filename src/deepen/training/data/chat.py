"""Fine-tuning data: questions and answers as token ids, and labels on the answers only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepen.common.errors import DeepenError
from deepen.training.data.files import Row, capitalised
from deepen.training.data.templates import marked_template, own_template, reads_parts
from deepen.training.data.turns import Turn, conversation_of, in_parts, messages_of
from deepen.training.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that the loss leaves out."""

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
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""Form of chat rows → the columns that make it."""


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
        self._own, self._marked = own_template(tokenizer), marked_template(tokenizer)
        self._in_parts = reads_parts(tokenizer)
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

    def read(self, row: Row) -> Example | None:
        """Turn one row into an example; ``None`` where a column of its form is null.

        Raises:
            DeepenError: A column is missing or not of its form.
        """
        for column in self._columns:
            if column not in row.columns:
                raise DeepenError(
                    f"{capitalised(row.where)} lacks the column {column!r} "
                    f"({self._form.replace('_', '/')} rows have: {', '.join(self._columns)})."
                )
        if any(row.columns[column] is None for column in self._columns):
            return None
        reads: Mapping[str, Callable[[Row], Example]] = {
            "messages": lambda row: self._conversation(
                messages_of(row.columns["messages"], row), row
            ),
            "sharegpt": lambda row: self._conversation(conversation_of(row), row),
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
        before = messages_of(prompt, row)
        turns = [*before, *messages_of(completion, row)]
        text = self._render(turns, row, self._own)
        prompted = self._render(before, row, self._own, prompted=True)
        if self._data.loss == "all" or text.startswith(prompted):
            return self._spans(text, [(len(prompted), len(text))])
        if self._marked is None:
            raise _unstable(row)
        text, marks = self._render_marked(turns, row, self._marked)
        start, earlier = self._render_marked(before, row, self._marked)
        end = earlier[-1][1] if earlier else 0
        if marks[: len(earlier)] != earlier or text[:end] != start[:end]:
            raise _unstable(row)
        return self._spans(text, marks[len(earlier) :])

    def _answer(self, prompt: str, completion: str) -> Example:
        """Join a prompt and an answer, tokenised apart as they are when the model is used."""
        before = self._encode(prompt, special=True)
        after = [*self._encode(completion), self._eos]
        masked = [IGNORED] * len(before) if self._data.loss == "answer" else before
        return Example(before + after, masked + after)

    def _conversation(self, turns: Sequence[Turn], row: Row) -> Example:
        """Read a conversation; its answers are the assistant's turns."""
        if self._data.loss == "all":
            return self._spans(self._render(turns, row, self._own), [])
        if self._marked is not None:
            return self._spans(*self._render_marked(turns, row, self._marked))
        text = self._render(turns, row, self._own)
        spans = []
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = self._render(turns[:index], row, self._own, prompted=True)
            after = self._render(turns[: index + 1], row, self._own)
            if not (text.startswith(after) and after.startswith(before)):
                raise _unstable(row)
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

    def _render(
        self, turns: Sequence[Turn], row: Row, template: str | None, *, prompted: bool = False
    ) -> str:
        """Write turns as a chat template does.

        Raises:
            DeepenError: There is no template, or it does not take these turns.
        """
        if template is None:
            raise self._without_template(row)
        try:
            text: Any = self._tokenizer.apply_chat_template(
                self._written(turns),
                tokenize=False,
                add_generation_prompt=prompted,
                chat_template=template,
            )
        except Exception as error:  # the templates raise what they like
            raise _refused(row, error) from None
        return str(text)

    def _render_marked(
        self, turns: Sequence[Turn], row: Row, template: str
    ) -> tuple[str, list[tuple[int, int]]]:
        """Write turns as a chat template with marks does; say where the marked characters are.

        Raises:
            DeepenError: The template does not take these turns.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # its types say that it returns a text alone
        try:
            texts, marks = render(
                [self._written(turns)],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # the templates raise what they like
            raise _refused(row, error) from None
        return texts[0], marks[0]

    def _written(self, turns: Sequence[Turn]) -> Any:  # noqa: ANN401 (what transformers takes)
        """Copy messages, for templates that change them; in parts if the template reads those."""
        if not self._in_parts:
            return [dict(turn) for turn in turns]
        return [dict(turn) | {"content": in_parts(turn["content"])} for turn in turns]

    def _without_template(self, row: Row) -> DeepenError:
        """Say that there is no chat template."""
        return DeepenError(
            f"{capitalised(row.where)} holds messages, but the tokenizer has no chat template "
            f"to write them with; name a Jinja file in data.chat_template, or give rows with "
            f"prompt and completion."
        )

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


def _form_of(row: Row, data: DataConfig) -> str:
    """Guess the form of the rows from the columns of the first."""
    for form, columns in COLUMNS.items():
        if set(columns) <= row.columns.keys():
            return form
    if data.text_column in row.columns:
        return "text"
    names = ", ".join(row.columns)
    raise DeepenError(
        f"{capitalised(row.where)} has {f'the columns {names}' if names else 'no columns at all'}; "
        f"fine-tuning reads messages, conversations, prompt and completion, or instruction and "
        f"output."
    )


def _refused(row: Row, error: Exception) -> DeepenError:
    """Say that a template does not take a row."""
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return DeepenError(
        f"The chat template does not take the turns of {row.where} ({reason}); mend the row, or "
        f"give data.chat_template a template that takes it."
    )


def _unstable(row: Row) -> DeepenError:
    """Say that answers cannot be found."""
    return DeepenError(
        f"The chat template writes the turns of {row.where} differently when later ones follow, so "
        f"the answers cannot be found; give data.chat_template a template with {{% generation %}} "
        f"marks, or set data.loss=all."
    )
