"""Which alignment starts and learns best? The studies of docs/results.md, from nothing.

    python benchmarks/science.py runs/science base       # texts, tokenizer, a base of 1.7M
    python benchmarks/science.py runs/science start      # how far the function moves at the start
    python benchmarks/science.py runs/science rates      # every arm at a grid of learning rates
    python benchmarks/science.py runs/science methods    # every arm at its best one, five seeds
    python benchmarks/science.py runs/science extras     # what might do better still
    python benchmarks/science.py runs/science counts     # how many new blocks
    python benchmarks/science.py runs/science places     # where four of them stand
    python benchmarks/science.py runs/science gaps       # one new block in each gap in turn
    python benchmarks/science.py runs/science tables     # Markdown of all that is there

Each stage needs the ones above it and resumes where it was. The base is trained on the standard
library without its tests. Arms go on with those tests, a kind of text that the base never saw, or
with ``--domain library`` on the same text. Learning rates are chosen for each on a seed and on
held-out files that the later stages do not use. Two arms run at once (``--jobs``). ``--seed`` makes
another base, in another folder.
"""

import argparse
import json
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from rich.console import Console

import deepen
import science_tables as tables
from deepen import printing
from deepen.alignment import gap_scores
from deepen.base import open_base
from deepen.comparison.aggregate import BASE
from deepen.comparison.run import compare, read_records
from deepen.comparison.study import Study
from deepen.demo.corpus import read_corpus
from deepen.demo.material import END_OF_DOCUMENT, new_model, train_tokenizer
from deepen.demo.recipe import FULL, Budget, DemoRecipe
from deepen.results import ArmRecord
from deepen.training.recipe import Recipe
from deepen.training.run import train

RECIPE: DemoRecipe = FULL.model_copy(
    update={"hidden": 128, "ffn": 352, "base": Budget(steps=5000, sequences=4, learning_rate=2e-3)}
)
LENGTH, STEPS, SEQUENCES, SCORED = RECIPE.sequence_length, 120, 4, 16_384
RATES, RATES_OF_EVERYTHING = (1e-3, 2e-3, 4e-3, 8e-3), (1e-4, 2e-4, 4e-4, 8e-4)
"""Learning rates that are tried at first: of new blocks, and where everything trains."""
SEEDS, CHOOSING_SEED = (0, 1, 2, 3, 4), 100


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Way(NamedTuple):
    """A way to make an arm's model, and to train it."""

    method: str
    """Growth method."""
    options: Mapping[str, Any] = NOTHING
    """Its own options."""
    training: Mapping[str, Any] = NOTHING
    """What differs in training, beside the learning rate."""


ZEROED = {"output_scale": 0}
FUSED = {
    "published": Way("opt-deus", {"fidelity": "published"}),
    "normalised": Way("opt-deus", {"fidelity": "normalised"}),
    "structured": Way("opt-deus", {"fidelity": "structured"}),
    "structured, activations": Way("opt-deus", {"fidelity": "structured", "cost": "activations"}),
    "mean, zeroed": Way("avg-deus", ZEROED),
    "mean": Way("avg-deus"),
    "LESA, zeroed": Way("lesa", ZEROED),
    "LESA": Way("lesa"),
}
"""Arms that average or predict: each with restored norms as well, and without."""
WHOLE = {
    "copy, zeroed": Way("llama-pro"),
    "upper copy, zeroed": Way("avg-deus", {**ZEROED, "upper_share": 1}),
    "random, zeroed": Way("random"),
    "SOLAR": Way("solar"),
}
"""Arms whose rows have their parents' norms in any case."""
NORMS = {"restore_norms": True}
BEST, BEST_NAME = Way("opt-deus", {"fidelity": "structured", **NORMS}), "structured, norms"
COPY = "copy, zeroed"


def changed(way: Way, training: Mapping[str, Any] = NOTHING, **options: object) -> Way:
    """Return a way with other options."""
    return Way(way.method, {**way.options, **options}, {**way.training, **training})


METHODS = {
    BASE: Way(BASE),
    **FUSED,
    **{f"{label}, norms": changed(way, **NORMS) for label, way in FUSED.items()},
    **WHOLE,
}
PAIRS = (
    ("structured", "normalised"),
    ("structured", "mean, zeroed"),
    ("structured", "random, zeroed"),
    ("structured", "structured, activations"),
    ("structured, norms", "normalised, norms"),
    ("structured, norms", "mean, zeroed, norms"),
    ("structured, norms", "published, norms"),
    ("structured, norms", "structured, activations, norms"),
    ("structured, norms", "upper copy, zeroed"),
    ("structured, norms", "random, zeroed"),
    *((f"{label}, norms", label) for label in FUSED),
    ("mean, zeroed", "mean"),
    ("LESA, zeroed", "LESA"),
    ("mean, zeroed", "random, zeroed"),
    ("published", "random, zeroed"),
    ("published, norms", "upper copy, zeroed"),
    ("upper copy, zeroed", COPY),
)
"""Differences that are printed, beside those from copies."""
EXTRAS = {
    "features × 1.5": changed(BEST, feature_scale=1.5),
    "outputs × ¼": changed(BEST, output_scale=0.25),
    "entropic": changed(BEST, solver="entropic"),
    "upper ¾": changed(BEST, upper_share=0.75),
    "lower ¾": changed(BEST, upper_share=0.25),
    "matched half": changed(BEST, matched_share=0.5),
    "matched norms": changed(BEST, match_norms=True),
    "output rate × 3": changed(BEST, {"output_rate_factor": 3}),
    "outputs lead 12 steps": changed(BEST, {"output_lead": 12}),
    "rates × 0.7 a block": changed(BEST, {"block_rate_decay": 0.7}),
    "mean, outputs × ¼": changed(FUSED["mean"], **NORMS, output_scale=0.25),
    "copy, features × 1.5": changed(WHOLE[COPY], feature_scale=1.5),
    "copy, output rate × 3": changed(WHOLE[COPY], {"output_rate_factor": 3}),
}
"""Changes to the best arm that might do better, and to others as a control."""
PAIRS_OF_EXTRAS = tuple((label, BEST_NAME) for label in EXTRAS)


class Files:
    """Where everything lies."""

    def __init__(self, folder: Path, domain: str, seed: int) -> None:
        """Name the files below a folder; the seed is the base's."""
        self.folder, self.domain, self.seed = folder, domain, seed
        self.base = folder / "base" / "model"
        self.untrained = folder / "untrained"
        self.calibration = folder / "calibration.txt"
        self.rates = folder / f"rates-{domain}.json"

    def study(self, name: str) -> Path:
        """Return the folder of a study."""
        return self.folder / f"{name}-{self.domain}"

    def text(self, domain: str, part: str) -> Path:
        """Return a text: of the ``library`` or the ``tests``; for training, choosing or scoring."""
        return self.folder / f"{domain}-{part}.jsonl"


def make_base(files: Files, jobs: int) -> None:
    """Write the texts, train the tokenizer and the base."""
    files.folder.mkdir(parents=True, exist_ok=True)
    root = Path(sysconfig.get_paths()["stdlib"])
    corpora = {
        "library": read_corpus(1.0, 0.08, root),
        "tests": read_corpus(0.6, 0.08, root / "test"),
    }
    for domain, corpus in corpora.items():
        for part, texts in {
            "training": corpus.training,
            "choosing": corpus.held_out[::2],
            "scoring": corpus.held_out[1::2],
        }.items():
            lines = (json.dumps({"text": text}) + "\n" for text in texts)
            files.text(domain, part).write_text("".join(lines), encoding="utf-8")
    library = corpora["library"].training
    files.calibration.write_text("\n".join(library[::40]), encoding="utf-8")
    if not files.untrained.exists():
        tokenizer = train_tokenizer(library, RECIPE.vocabulary)
        end = tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT)
        new_model(RECIPE, end).save_pretrained(files.untrained)
        tokenizer.save_pretrained(files.untrained)
    recipe = Recipe.model_validate(
        {
            "model": str(files.untrained),
            "data": {"path": str(files.text("library", "training")), "sequence_length": LENGTH},
            "training": {
                "max_steps": RECIPE.base.steps,
                "batch_size": RECIPE.base.sequences,
                "learning_rate": RECIPE.base.learning_rate,
                "trains": "everything",
                "report_to": "none",
            },
            "seed": files.seed,
            "output": str(files.folder / "base"),
        }
    )
    with printing.progress_bar() as progress:
        record = train(recipe, "cpt", progress=progress)
    print(f"base: {record.parameters:,} parameters, {record.tokens:,} tokens, ", end="")
    print(f"{record.wall_seconds:.0f} s, loss {record.curve[-1].loss_nats_per_token:.3f}")


def arm(files: Files, label: str, way: Way, **more: object) -> dict[str, Any]:
    """Describe an arm; new blocks go into the gaps of the top half, whatever the method."""
    options = way.options
    if options.get("cost") == "activations":
        options = {**options, "calibration": str(files.calibration)}
    if way.method == "opt-deus":
        options = {"restore_norms": False, **options}
    place = {} if way.method in (BASE, "solar") else {"placement": "top"}
    training = dict(way.training)
    own = {"method": way.method, "options": {**options}, "training": training}
    return {"label": label, **own, **place, **more}


def run_study(
    files: Files,
    name: str,
    arms: Sequence[dict[str, Any]],
    jobs: int,
    *,
    part: str = "scoring",
    domains: Sequence[str] = ("library", "tests"),
    seeds: Sequence[int] = SEEDS,
) -> list[ArmRecord]:
    """Run one study and return its records."""
    texts = [files.text(domain, part) for domain in domains]
    study = Study.model_validate(
        {
            "title": f"Which alignment learns best? {name} on {files.domain}",
            "base": str(files.base),
            "arms": arms,
            "new_layers": 4,
            "seeds": list(seeds),
            "data": {"path": str(files.text(files.domain, "training")), "sequence_length": LENGTH},
            "training": {
                "max_steps": STEPS,
                "batch_size": SEQUENCES,
                "learning_rate": 1e-3,
                "report_to": "none",
            },
            "evaluation": {"perplexity": [str(text) for text in texts], "max_tokens": SCORED},
            "alignment": False,
            "output": str(files.study(name)),
        }
    )
    with printing.progress_bar() as progress:
        compare(study, jobs=jobs, progress=progress, tell=Console().print)
    return read_records(files.study(name))


def try_rates(files: Files, name: str, ways: Mapping[str, Way], jobs: int) -> None:
    """Find the learning rate that each way does best with, on a seed and a text of their own.

    Where the best one is the lowest or the highest that was tried, a further one is tried.
    """
    tried = {
        label: list(RATES_OF_EVERYTHING if way.method in (BASE, "solar") else RATES)
        for label, way in ways.items()
    }
    while True:
        arms = [
            at_rate(arm(files, f"{label} at {rate:g}", way), rate)
            for label, way in ways.items()
            for rate in tried[label]
        ]
        records = run_study(
            files, name, arms, jobs, part="choosing", domains=[files.domain], seeds=[CHOOSING_SEED]
        )
        found: dict[str, dict[float, float]] = {}
        for record in records:
            label, asked, rate = record.arm.rpartition(" at ")
            if asked:  # not the un-grown base, which every study has
                found.setdefault(label, {})[float(rate)] = tables.loss(record.after, files.domain)
        further = {label: beyond(losses) for label, losses in found.items()}
        if not any(further.values()):
            break
        for label, rate in further.items():
            tried[label] += [rate] if rate else []
    known = read_rates(files) | found
    files.rates.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def beyond(losses: Mapping[float, float]) -> float | None:
    """Return the rate to try next if the best one is at an end of those that were tried."""
    best = min(losses, key=lambda rate: losses[rate])
    if best == max(losses):
        return 2 * best
    return best / 2 if best == min(losses) else None


def read_rates(files: Files) -> dict[str, dict[float, float]]:
    """Return arm → learning rate → loss, of all that was tried."""
    if not files.rates.is_file():
        return {}
    read = json.loads(files.rates.read_text(encoding="utf-8"))
    return {label: {float(rate): x for rate, x in of.items()} for label, of in read.items()}


def at_rate(one: dict[str, Any], rate: float) -> dict[str, Any]:
    """Give an arm a learning rate."""
    return {**one, "training": {**one["training"], "learning_rate": rate}}


def at_best(files: Files, one: dict[str, Any], like: str = "") -> dict[str, Any]:
    """Give an arm its best learning rate, or that of another one."""
    losses = read_rates(files)[like or one["label"]]
    return at_rate(one, min(losses, key=lambda rate: losses[rate]))


def choose_rates(files: Files, jobs: int) -> None:
    """Find every arm's best learning rate."""
    try_rates(files, "rates", METHODS, jobs)


def compare_methods(files: Files, jobs: int) -> None:
    """Run every arm at its best learning rate."""
    arms = [at_best(files, arm(files, label, way)) for label, way in METHODS.items()]
    run_study(files, "methods", arms, jobs)


def compare_extras(files: Files, jobs: int) -> None:
    """Run what might do better, at its own best learning rate, beside what it changes."""
    try_rates(files, "rates-extras", EXTRAS, jobs)
    ways = {label: METHODS[label] for label in (BASE, BEST_NAME, COPY)} | EXTRAS
    run_study(files, "extras", [at_best(files, arm(files, k, w)) for k, w in ways.items()], jobs)


def compare_where(
    files: Files, name: str, variants: Mapping[str, dict[str, object]], jobs: int
) -> None:
    """Run the best arm and plain copies with other numbers or places of new blocks."""
    arms = [at_best(files, arm(files, BASE, Way(BASE)))]
    for variant, where in variants.items():
        for label in (BEST_NAME, COPY):
            one = arm(files, f"{label}: {variant}", METHODS[label]) | where
            arms.append(at_best(files, one, label))
    run_study(files, name, arms, jobs)


def compare_counts(files: Files, jobs: int) -> None:
    """Vary the number of new blocks."""
    numbers = {1: 1, 2: 1, 4: 1, 8: 2}
    variants = {f"{n} new": {"new_layers": n, "per_gap": gap} for n, gap in numbers.items()}
    compare_where(files, "counts", variants, jobs)


def compare_places(files: Files, jobs: int) -> None:
    """Vary where four new blocks stand."""
    places = ("top", "middle", "bottom", "top-bottom", "uniform", "quality", "quality-low")
    compare_where(files, "places", {place: {"placement": place} for place in places}, jobs)


def compare_gaps(files: Files, jobs: int) -> None:
    """Put a single new block into each gap in turn, to tell place from alignment."""
    gaps = range(RECIPE.blocks - 1)
    variants = {f"gap {gap}": {"placement": f"after:{gap}", "new_layers": 1} for gap in gaps}
    compare_where(files, "gaps", variants, jobs)


def measure_start(files: Files, jobs: int) -> None:
    """Measure how far the function moves when output projections are kept in part."""
    scales = (0, 0.25, 0.5, 1)
    print("| method | 0 | ¼ | ½ | 1 |\n|---|---|---|---|---|")
    fused = ("published", "normalised", "structured", "structured, activations", "mean")
    for label in (*fused, *(f"{one}, norms" for one in fused), COPY, "random, zeroed"):
        cells = []
        for scale in scales:
            one = arm(files, label, changed(METHODS[label], output_scale=scale))
            out = files.folder / "grown"
            how = {"placement": "top", "options": one["options"], "overwrite": True}
            deepen.grow(files.base, out, method=one["method"], **how)
            record = deepen.verify(files.base, out, sequences=16, length=LENGTH)
            cells.append(f"{record.kl_nats_per_token:.4f}")
        print(f"| {label.removesuffix(', zeroed')} | {' | '.join(cells)} |", flush=True)


def print_tables(files: Files, jobs: int) -> None:
    """Print what the studies found."""
    tables.print_rates(read_rates(files))
    scores: Sequence[float] = ()
    if (files.study("gaps") / "records.jsonl").is_file():
        scores = gap_scores(open_base(files.base), torch.device("cpu"))
    for name in ("methods", "extras", "counts", "places", "gaps"):
        if records := read_records(files.study(name)):
            print(f"\n### {name}\n")
            pairs = PAIRS if name == "methods" else PAIRS_OF_EXTRAS if name == "extras" else ()
            tables.print_study(records, files.domain, COPY, pairs)
            if name in ("counts", "places", "gaps"):
                tables.print_variants(records, files.domain, BEST_NAME, COPY, scores)


STAGES = {
    "base": make_base,
    "start": measure_start,
    "rates": choose_rates,
    "methods": compare_methods,
    "extras": compare_extras,
    "counts": compare_counts,
    "places": compare_places,
    "gaps": compare_gaps,
    "tables": print_tables,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--domain", choices=("tests", "library"), default="tests")
    parser.add_argument("--jobs", type=int, default=2, help="arms at once")
    parser.add_argument("--seed", type=int, default=1000, help="of the base's weights and order")
    asked = parser.parse_args()
    STAGES[asked.stage](Files(asked.folder, asked.domain, asked.seed), asked.jobs)


if __name__ == "__main__":
    main()
