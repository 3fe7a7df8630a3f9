"""What the demo begins with: a base, a text that is new to it and one that it knows."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from deepen.base.registry.models import MODELS, opened
from deepen.base.registry.texts import TEXTS, text_file
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.demo.corpus import read_corpus
from deepen.demo.material import Material, prepare
from deepen.demo.recipe import SmallBase
from deepen.records.training import TrainRecord
from deepen.training.recipe import Recipe
from deepen.training.run import train

Tell = Callable[[str], None]

_MODEL, _NEW, _OLD = "smollm2", "portuguese", "questions"
_PROSE = "english"


@dataclass(frozen=True)
class Start:
    """A base and its texts."""

    base: str
    """The base: a folder or ``registry:NAME``."""
    is_pretrained: bool
    """Whether somebody else trained it, on a great deal of text."""
    new: str
    """What the new text is, for people."""
    training: str
    """New text to train on."""
    held_out: str
    """New text to measure on."""
    old: str
    """What the old text is."""
    kept: str
    """Old text to measure on."""
    protected: str
    """Old text that is read so as to be kept."""
    prompt: str
    """Beginning of a text that a sample continues."""


def pretrained(tell: Tell) -> Start | None:
    """Fetch a pretrained base and a new text; ``None``, with a sentence, if they are not to be had.

    Args:
        tell: Called with what is fetched and its licence.
    """
    try:
        opened(_MODEL)
        for text, part in product((_NEW, _OLD), ("training", "held-out")):
            text_file(f"registry:{text}/{part}")
    except DeepenError as error:
        tell(f"{error}\nUntil then: a small base that the demo trains itself, on Python's sources.")
        return None
    tell(f"base      {MODELS[_MODEL].title} ({MODELS[_MODEL].licence_name})")
    for kind, name in (("new text", _NEW), ("old text", _OLD)):
        tell(f"{kind}  {TEXTS[name].title} ({TEXTS[name].licence})")
    return Start(
        base=f"registry:{_MODEL}",
        is_pretrained=True,
        new=TEXTS[_NEW].title,
        training=f"registry:{_NEW}/training",
        held_out=f"registry:{_NEW}/held-out",
        old=TEXTS[_OLD].title,
        kept=f"registry:{_OLD}/held-out",
        protected=f"registry:{_OLD}/training",
        prompt="Se o repositório não existir,",
    )


def self_made(folder: Path, numbers: SmallBase, progress: Progress, tell: Tell) -> Start:
    """Train a small base on this machine's Python sources, to which English prose is new.

    Args:
        folder: Where to work; a second call finds the base there.
        numbers: Its size and its training.
        progress: Called with the stage and the finished share of it.
        tell: Called with a sentence about it.

    Raises:
        DeepenError: The machine has no Python sources.
    """
    corpus = read_corpus(numbers.file_share, numbers.held_out_share)
    material = prepare(folder / "material", numbers, corpus, progress)
    base = train(_base_recipe(numbers, material, folder), "cpt", progress=progress)
    tell(_sentence(base, corpus.characters))
    return Start(
        base=str(folder / "base" / "model"),
        is_pretrained=False,
        new=TEXTS[_PROSE].title,
        training=f"registry:{_PROSE}/training",
        held_out=f"registry:{_PROSE}/held-out",
        old="sources of the Python standard library",
        kept=str(material.held_out),
        protected=str(material.training),
        prompt="The following sections describe how a class is",
    )


def _base_recipe(numbers: SmallBase, material: Material, folder: Path) -> Recipe:
    """Return what the base is trained with, from random weights."""
    return Recipe.model_validate(
        {
            "model": str(material.untrained),
            "data": {"path": str(material.training), "sequence_length": numbers.sequence_length},
            "training": {
                "max_steps": numbers.steps,
                "batch_size": numbers.sequences,
                "learning_rate": numbers.learning_rate,
                "trains": "everything",
                "log_every": 20,
                "report_to": "none",
            },
            "seed": 1000,  # of no arm, so that arms do not begin with the same sequences
            "output": str(folder / "base"),
        }
    )


def _sentence(base: TrainRecord, characters: int) -> str:
    """Say how the base came about."""
    loss = base.curve[-1].loss_nats_per_token
    return (
        f"base      {base.parameters:,} parameters, trained for {base.wall_seconds:.0f} s on "
        f"{base.tokens:,} tokens of {characters / 1e6:.1f} million characters of Python, "
        f"loss {loss:.3f}"
    )
