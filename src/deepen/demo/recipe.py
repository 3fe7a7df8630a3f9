"""All numbers of the demo: one recipe for ``deepen demo``, and a miniature of it."""

from pydantic import Field

from deepen.records import Record

REVISION = 1
"""Part of the cache key: raise it whenever the code changes what base a recipe makes."""


class Budget(Record):
    """How long and how fast to train."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    sequences: int = Field(ge=1)
    """Sequences in one step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(ge=0)
    """Steps over which the rate rises from zero, linearly."""
    decay_steps: int = Field(ge=0)
    """Last steps, over which the rate falls to zero, linearly; between the two it is constant."""
    embedding_factor: float = Field(default=1.0, gt=0)
    """Multiple of the rate at which the embeddings train. They start small, and with a tied head a
    model of this size leaves the plateau of word frequencies only as fast as they grow."""

    @property
    def total_sequences(self) -> int:
        """Number of sequences that the whole budget consumes."""
        return self.steps * self.sequences

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = (step + 1) / (self.warmup_steps + 1)
        falling = (self.steps - step) / (self.decay_steps + 1)
        return self.learning_rate * min(1.0, rising, falling)


class BaseRecipe(Record):
    """Everything that determines the base, apart from the corpus and the software."""

    file_share: float = Field(gt=0, le=1)
    """Share of the machine's Python sources that is used."""
    held_out_share: float = Field(gt=0, lt=1)
    """Share of those files that nothing is ever trained on."""
    vocabulary: int = Field(ge=257)
    """Size of the tokenizer: 256 bytes, the end of a document, and merges."""
    sequence_tokens: int = Field(ge=2)
    """Length of a training sequence."""
    hidden: int
    """Width of the residual stream."""
    ffn: int
    """Width of the FFN."""
    blocks: int
    """Depth."""
    heads: int
    """Query heads."""
    key_value_heads: int
    """KV heads; several query heads share one."""
    initial_deviation: float = Field(gt=0)
    """Standard deviation of the initial weights."""
    budget: Budget
    """How it is trained."""
    seed: int = 0
    """Seed of the initial weights and of the data order."""


class Recipe(Record):
    """The whole demo."""

    base: BaseRecipe
    """The model to grow."""
    new_layers: int
    """Blocks that every method adds."""
    continued: Budget
    """What every grown model, and the base itself, is trained on for; the same data for all."""
    scored_sequences: int
    """Held-out sequences that perplexity is measured on."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""


FULL = Recipe(
    base=BaseRecipe(
        file_share=1.0,
        held_out_share=0.05,
        vocabulary=2048,
        sequence_tokens=256,
        hidden=160,
        ffn=432,
        blocks=8,
        heads=4,
        key_value_heads=2,
        initial_deviation=0.02,
        budget=Budget(steps=500, sequences=8, learning_rate=4e-3, warmup_steps=40, decay_steps=400),
    ),
    new_layers=4,
    continued=Budget(steps=200, sequences=4, learning_rate=1e-3, warmup_steps=10, decay_steps=0),
    scored_sequences=128,
)

QUICK = Recipe(
    base=BaseRecipe(
        file_share=0.1,
        held_out_share=0.2,
        vocabulary=512,
        sequence_tokens=64,
        hidden=32,
        ffn=64,
        blocks=6,
        heads=4,
        key_value_heads=2,
        initial_deviation=0.02,
        budget=Budget(
            steps=150,
            sequences=8,
            learning_rate=3e-3,
            warmup_steps=5,
            decay_steps=145,
            embedding_factor=10.0,
        ),
    ),
    new_layers=2,
    continued=Budget(steps=30, sequences=8, learning_rate=1e-3, warmup_steps=5, decay_steps=0),
    scored_sequences=64,
    # So small a model is fastest on one, and waits for others wherever the machine is busy.
    threads=1,
)
