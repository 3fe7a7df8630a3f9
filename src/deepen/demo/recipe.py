"""All numbers of the demo: the whole of it, a first look, and a miniature for tests."""

from typing import Any

from pydantic import Field

from deepen.records.record import Record

Arms = tuple[dict[str, Any], ...]


class SmallBase(Record):
    """A base that the demo trains itself, where no pretrained one is to be had."""

    file_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the machine's Python sources that is used."""
    held_out_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of those files that nothing is ever trained on."""
    vocabulary: int = Field(default=2048, ge=257)
    """Size of the tokenizer: 256 bytes, the end of a document, and merges."""
    sequence_length: int = Field(default=256, ge=2)
    """Tokens in a training sequence."""
    hidden: int = 160
    """Width of the residual stream."""
    ffn: int = 432
    """Width of the FFN."""
    blocks: int = 8
    """Depth of the base."""
    heads: int = 4
    """Query heads."""
    key_value_heads: int = 2
    """KV heads; several query heads share one."""
    embedding_scale: float = 2.5
    """Factor on the embeddings' initial deviation of 0.02."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps, from random weights."""
    sequences: int = Field(default=4, ge=1)
    """Sequences in one step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""


class Trial(Record):
    """The study: every arm has the same FLOPs for the new text."""

    sequence_length: int = Field(ge=2)
    """Tokens in a training sequence."""
    steps: int = Field(ge=1)
    """Optimizer steps of the base; cheaper arms have more."""
    sequences: int = Field(ge=1)
    """Sequences in one step."""
    new_layers: int = Field(ge=1)
    """Blocks that every method adds."""
    scored_tokens: int = Field(ge=1)
    """Held-out tokens of each text that the loss is measured on."""
    written_tokens: int = Field(ge=1)
    """Tokens of a sample of what a model writes."""
    arms: Arms
    """Arms of the study, each with the learning rate that it has."""


class Numbers(Record):
    """One size of the demo."""

    small_base: SmallBase
    """The base of its own."""
    small: Trial
    """The study on it."""
    real: Trial | None
    """The study on a pretrained base; ``None`` if it is never fetched."""


def _arm(method: str, learning_rate: float, **more: object) -> dict[str, Any]:
    """Write an arm out, its label the method and not its learning rate."""
    return {
        "method": method,
        "label": method,
        "training": {"learning_rate": learning_rate},
        **more,
    }


def _spread(learning_rate: float, **more: object) -> dict[str, Any]:
    """Write out OpT-DeUS with its blocks spread over the depth, where they learn most."""
    return _arm("opt-deus", learning_rate, placement="uniform", **more)


PROTECTED = "opt-deus + protect"
"""Label of the arm whose updates keep clear of the old text."""


_REAL = Trial(
    sequence_length=128,
    steps=16,
    sequences=4,
    new_layers=3,
    scored_tokens=1536,
    written_tokens=30,
    arms=(
        _arm("base", 1e-4),
        _arm("lora", 1e-3),
        _arm("top-blocks", 1e-3),
        _arm("llama-pro", 3e-3),
        _spread(3e-3),
        _spread(3e-3, label=PROTECTED),
    ),
)
_SMALL = Trial(
    sequence_length=256,
    steps=60,
    sequences=4,
    new_layers=3,
    scored_tokens=8192,
    written_tokens=30,
    arms=(
        _arm("base", 1e-3),
        _arm("lora", 3e-3),
        _arm("top-blocks", 3e-3),
        _arm("llama-pro", 3e-3),
        _spread(3e-3),
        _spread(3e-3, label=PROTECTED),
    ),
)

FULL = Numbers(small_base=SmallBase(), small=_SMALL, real=_REAL)

FAST = Numbers(
    small_base=SmallBase(steps=150),
    small=_SMALL.model_copy(update={"steps": 20, "scored_tokens": 4096}),
    real=_REAL.model_copy(
        update={
            "steps": 10,
            "scored_tokens": 1024,
            "arms": (_REAL.arms[0], _REAL.arms[4]),
        }
    ),
)

TINY = Numbers(
    small_base=SmallBase(
        file_share=0.1,
        held_out_share=0.2,
        vocabulary=512,
        sequence_length=64,
        hidden=32,
        ffn=64,
        blocks=6,
        steps=40,
        sequences=8,
        learning_rate=1e-2,
    ),
    small=Trial(
        sequence_length=64,
        steps=6,
        sequences=8,
        new_layers=2,
        scored_tokens=1024,
        written_tokens=8,
        arms=_SMALL.arms,
    ),
    real=None,
)
