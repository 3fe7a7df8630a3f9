"""All numbers of the demo: the whole of it, a first look, and a miniature for tests."""

from typing import Any

from pydantic import Field

from deepen.records.record import Record


class Budget(Record):
    """How long and how fast to train."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    sequences: int = Field(ge=1)
    """Sequences in one step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""


class DemoRecipe(Record):
    """The whole demo."""

    file_share: float = Field(gt=0, le=1)
    """Share of the machine's Python sources that is used."""
    held_out_share: float = Field(gt=0, lt=1)
    """Share of those files that nothing is ever trained on."""
    vocabulary: int = Field(ge=257)
    """Size of the tokenizer: 256 bytes, the end of a document, and merges."""
    sequence_length: int = Field(ge=2)
    """Tokens in a training sequence."""
    hidden: int
    """Width of the residual stream."""
    ffn: int
    """Width of the FFN."""
    blocks: int
    """Depth of the base."""
    heads: int
    """Query heads."""
    key_value_heads: int
    """KV heads; several query heads share one."""
    embedding_scale: float = 2.5
    """Factor on the embeddings' initial deviation of 0.02."""
    base: Budget
    """Training of the base, from random weights."""
    new_layers: int
    """Blocks that every method adds."""
    continued: Budget
    """Continual pre-training of every arm."""
    fine_tuning: Budget
    """Fine-tuning of every arm."""
    scored_tokens: int
    """Held-out tokens that perplexity is measured on."""
    questions: int
    """Questions of the multiple-choice task, as far as there are functions to ask for."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the study."""
    arms: tuple[Any, ...] = (
        "base",
        "opt-deus",
        {"method": "opt-deus", "options": {"fidelity": "published"}},
        "avg-deus",
        "solar",
        "llama-pro",
        "lesa",
    )
    """Arms of the study."""


FULL = DemoRecipe(
    file_share=1.0,
    held_out_share=0.05,
    vocabulary=2048,
    sequence_length=256,
    hidden=160,
    ffn=432,
    blocks=8,
    heads=4,
    key_value_heads=2,
    base=Budget(steps=1000, sequences=4, learning_rate=1e-3),
    new_layers=4,
    continued=Budget(steps=150, sequences=4, learning_rate=1e-3),
    fine_tuning=Budget(steps=40, sequences=16, learning_rate=3e-4),
    scored_tokens=32_768,
    questions=200,
)

FAST = FULL.model_copy(
    update={
        "base": Budget(steps=150, sequences=4, learning_rate=1e-3),
        "continued": Budget(steps=30, sequences=4, learning_rate=1e-3),
        "fine_tuning": Budget(steps=10, sequences=16, learning_rate=3e-4),
        "scored_tokens": 8_192,
        "questions": 40,
    }
)

TINY = DemoRecipe(
    file_share=0.1,
    held_out_share=0.2,
    vocabulary=512,
    sequence_length=64,
    hidden=32,
    ffn=64,
    blocks=6,
    heads=4,
    key_value_heads=2,
    base=Budget(steps=40, sequences=8, learning_rate=1e-2),
    new_layers=2,
    continued=Budget(steps=6, sequences=8, learning_rate=2e-3),
    fine_tuning=Budget(steps=3, sequences=4, learning_rate=1e-3),
    scored_tokens=1_024,
    questions=8,
)
