"""Two domains learned apart and combined, beside one model that learned both.

Usage::

    python benchmarks/combine.py FOLDER [--base registry:smollm2] [--texts portuguese german]
        [--steps 24] [--learning-rate 4e-3] [--seed 0]

Grows the base by four blocks, spread, trains them on each text by itself, packs both results and
combines them; and trains one model of as many new blocks, and one of twice as many, on both texts,
half of the tokens from each, for as many steps as the two took together. Prints loss in nats per
token on held-out parts of both texts and on questions in English. FOLDER keeps everything; what is
finished is found again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import deepen
from deepen.evaluation.evaluate import evaluate
from deepen.packs.combine import HOWS, combine
from deepen.packs.pack import pack
from deepen.training.recipe import Recipe
from deepen.training.run import train

_NEW, _TOKENS = 4, 3072


def main() -> None:
    """Train, combine and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="registry:smollm2")
    parser.add_argument("--texts", nargs=2, default=["portuguese", "german"])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    models: dict[str, str | Path] = {"the base": given.base}
    packs = []
    for text in given.texts:
        models[f"{text} alone"] = _trained(given, [text], _NEW, given.steps)
        packs.append(given.folder / f"{text}-pack")
        if not packs[-1].exists():
            pack(models[f"{text} alone"], packs[-1])
    for how in HOWS:
        out = models[f"combined: {how}"] = given.folder / how
        if not out.exists():
            combine(given.base, *packs, out, how=how)
    for new in (_NEW, 2 * _NEW):
        models[f"both texts, {new} blocks"] = _trained(given, given.texts, new, 2 * given.steps)
    held_out = [f"registry:{text}/held-out" for text in (*given.texts, "questions")]
    print(" | ".join(["model", *given.texts, "questions"]))
    for name, model in models.items():
        found = evaluate(model, perplexity=held_out, max_tokens=_TOKENS, sequence_length=128)
        losses = [f"{text.loss_nats_per_token:.3f}" for text in found.texts]
        print(" | ".join([name, *losses]), flush=True)


def _trained(given: argparse.Namespace, texts: Sequence[str], new: int, steps: int) -> Path:
    """Grow the base by so many blocks, train them on the texts, and return the model's folder."""
    grown = given.folder / f"grown-{new}"
    if not grown.exists():
        how = {"method": "opt-deus", "new_layers": new, "placement": "uniform"}
        deepen.grow(given.base, grown, seed=given.seed, **how)
    first, *others = (f"registry:{text}/training" for text in texts)
    mix = [{"path": other, "share": 1 / len(texts)} for other in others]
    recipe = Recipe.model_validate(
        {
            "model": str(grown),
            "data": {"path": first, "mix": mix, "sequence_length": 128},
            "training": {
                "max_steps": steps,
                "batch_size": 4,
                "save_every": steps,
                "learning_rate": given.learning_rate,
                "report_to": "none",
            },
            "seed": given.seed,
            "output": str(given.folder / f"{'-'.join(texts)}-{new}"),
        }
    )
    train(recipe, "cpt")
    return Path(recipe.output) / "model"


if __name__ == "__main__":
    main()
