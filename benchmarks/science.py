"""Which alignment starts and learns best? The studies of docs/results.md, from nothing.

    python benchmarks/science.py runs/science base       # texts, tokenizer, a base of 1.7M
    python benchmarks/science.py runs/science start      # how far the function moves at the start
    python benchmarks/science.py runs/science rates      # every arm at a grid of learning rates
    python benchmarks/science.py runs/science methods    # every arm at its best one, five seeds
    python benchmarks/science.py runs/science extras     # what might do better still
    python benchmarks/science.py runs/science where      # how many new blocks, and where
    python benchmarks/science.py runs/science gaps       # one new block, in every gap in turn
    python benchmarks/science.py runs/science tables     # Markdown of all that is there, and a CSV

Each stage needs the ones above it and resumes where it was. The base is trained on the standard
library without its tests. Arms go on with those tests, a kind of text that the base never saw, or
with ``--domain library`` on the same text. Learning rates are chosen for each on a seed and on
held-out files that the later stages do not use. Two arms run at once (``--jobs``). ``--seed`` makes
another base, in another folder, for which ``--arms`` names fewer of them. ``--size large``, for a
GPU, is a base of 60M that is trained on the Python packages installed beside this one.
"""

import argparse
import json
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console

import deepen
import science_tables as tables
from deepen.comparison.results import read_records
from deepen.comparison.run import compare
from deepen.comparison.study import BASE, Study
from deepen.demo.corpus import read_corpus
from deepen.demo.material import END_OF_DOCUMENT, new_model, train_tokenizer
from deepen.demo.recipe import FULL, Budget, DemoRecipe
from deepen.records.study import ArmRecord
from deepen.report import terminal
from deepen.training.recipe import Recipe
from deepen.training.run import train
from science_arms import (
    BEST_NAME,
    BLOCKS,
    COPY,
    COUNTS,
    EXTRAS,
    GAPS,
    METHODS,
    PAIRS,
    PLACES,
    Way,
    changed,
)


class Size(NamedTuple):
    """A scale of the study."""

    recipe: DemoRecipe
    """Its texts, its base and what every arm gets."""
    library: str
    """Which of Python's folders the base's text lies in."""
    rates: tuple[float, ...]
    """Learning rates that are tried at first."""
    rates_of_everything: tuple[float, ...]
    """The same, of arms that train everything."""


SMALL = FULL.model_copy(
    update={
        "held_out_share": 0.08,
        "blocks": BLOCKS,
        "hidden": 128,
        "ffn": 352,
        "base": Budget(steps=5000, sequences=4, learning_rate=2e-3),
        "continued": Budget(steps=120, sequences=4, learning_rate=1e-3),
        "scored_tokens": 16_384,
    }
)
LARGE = SMALL.model_copy(
    update={
        "file_share": 1.0,
        "held_out_share": 0.006,
        "vocabulary": 8192,
        "sequence_length": 512,
        "blocks": 12,
        "hidden": 640,
        "ffn": 1728,
        "heads": 10,
        "key_value_heads": 5,
        "new_layers": 6,
        "base": Budget(steps=1600, sequences=64, learning_rate=1e-3),
        "continued": Budget(steps=120, sequences=16, learning_rate=1e-3),
        "scored_tokens": 65_536,
    }
)
SIZES = {
    "small": Size(SMALL, "stdlib", (1e-3, 2e-3, 4e-3, 8e-3), (1e-4, 2e-4, 4e-4, 8e-4)),
    "large": Size(LARGE, "purelib", (5e-4, 1e-3, 2e-3, 4e-3), (1e-4, 2e-4, 4e-4, 8e-4)),
}
SEEDS, CHOOSING_SEED, ORDER_SEED = (0, 1, 2, 3, 4), 100, 1000
"""Of the arms, of learning rates' choice, and of the order in which the first base reads."""
LAST_STEPS = 300
"""Of the base, whose mean loss is printed; that of one step is noise."""
FOUND = ("methods", "extras", "where", "gaps")
"""Studies whose records are printed."""


class Files:
    """What is asked for, and where it lies."""

    def __init__(
        self, folder: Path, domain: str, size: Size, seed: int, arms: Sequence[str]
    ) -> None:
        """Name the files below a folder; the seed is the base's, no arms are all of them."""
        self.folder, self.domain, self.size = folder, domain, size
        self.recipe, self.seed, self.arms = size.recipe, seed, arms
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
    recipe, folders = files.recipe, sysconfig.get_paths()
    root, tests = folders[files.size.library], Path(folders["stdlib"]) / "test"
    corpora = {
        "library": read_corpus(recipe.file_share, recipe.held_out_share, root),
        "tests": read_corpus(0.6, 0.08, tests),
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
        # Some 2000 documents have all the words that matter.
        tokenizer = train_tokenizer(library[:: 1 + len(library) // 2000], recipe.vocabulary)
        end = tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT)
        new_model(recipe, end, files.seed).save_pretrained(files.untrained)
        tokenizer.save_pretrained(files.untrained)
    length, budget = recipe.sequence_length, recipe.base
    asked = Recipe.model_validate(
        {
            "model": str(files.untrained),
            "data": {"path": str(files.text("library", "training")), "sequence_length": length},
            "training": {
                "max_steps": budget.steps,
                "batch_size": budget.sequences,
                "learning_rate": budget.learning_rate,
                "trains": "everything",
                "report_to": "none",
            },
            "seed": ORDER_SEED + files.seed,
            "output": str(files.folder / "base"),
        }
    )
    with terminal.progress_bar() as progress:
        record = train(asked, "cpt", progress=progress)
    print(f"base: {record.parameters:,} parameters, {record.tokens:,} tokens, ", end="")
    last = [point for point in record.curve if point.step > budget.steps - LAST_STEPS]
    loss = fmean(point.loss_nats_per_token for point in last)
    print(f"{record.wall_seconds:.0f} s, loss in the last {LAST_STEPS} steps {loss:.3f}")


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
    length, budget = files.recipe.sequence_length, files.recipe.continued
    study = Study.model_validate(
        {
            "title": f"Which alignment learns best? {name} on {files.domain}",
            "base": str(files.base),
            "arms": arms,
            "new_layers": files.recipe.new_layers,
            "seeds": list(seeds),
            "data": {
                "path": str(files.text(files.domain, "training")),
                "sequence_length": length,
                "cache": str(files.folder / "tokens"),
            },
            "training": {
                "max_steps": budget.steps,
                "batch_size": budget.sequences,
                "learning_rate": budget.learning_rate,
                "report_to": "none",
            },
            "evaluation": {
                "perplexity": [str(text) for text in texts],
                "max_tokens": files.recipe.scored_tokens,
            },
            "alignment": False,
            "output": str(files.study(name)),
        }
    )
    with terminal.progress_bar() as progress:
        compare(study, jobs=jobs, progress=progress, tell=Console().print)
    return read_records(files.study(name))


def try_rates(files: Files, name: str, ways: Mapping[str, Way], jobs: int) -> None:
    """Find the learning rate that each way does best with, on a seed and a text of their own.

    Where the best one is the lowest or the highest that was tried, a further one is tried.
    """
    tried = {
        label: list(
            files.size.rates_of_everything if way.method in (BASE, "solar") else files.size.rates
        )
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
            if asked and label in tried:  # every study has the un-grown base, and what was before
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


def wanted(files: Files, ways: Mapping[str, Way]) -> dict[str, Way]:
    """Return the un-grown base and those arms that are asked for."""
    asked = {k: way for k, way in ways.items() if not files.arms or k in files.arms}
    return {BASE: Way(BASE), **asked}


def choose_rates(files: Files, jobs: int) -> None:
    """Find the best learning rate of every arm of which it is not known."""
    known = read_rates(files)
    ways = {k: way for k, way in wanted(files, METHODS).items() if k not in known}
    if ways:
        try_rates(files, "rates", ways, jobs)


def compare_methods(files: Files, jobs: int) -> None:
    """Run every arm at its best learning rate."""
    ways = wanted(files, METHODS)
    run_study(files, "methods", [at_best(files, arm(files, k, w)) for k, w in ways.items()], jobs)


def compare_extras(files: Files, jobs: int) -> None:
    """Run what might do better, at its own best learning rate."""
    ways = wanted(files, EXTRAS)
    try_rates(files, "rates-extras", {k: way for k, way in ways.items() if k != BASE}, jobs)
    run_study(files, "extras", [at_best(files, arm(files, k, w)) for k, w in ways.items()], jobs)


def vary(
    files: Files, variants: Mapping[str, Mapping[str, object]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return arms with other new blocks, at the rates that are best for four on top."""
    return [
        at_best(files, arm(files, f"{label}: {variant}", METHODS[label]) | where, label)
        for variant, where in variants.items()
        for label in labels
    ]


def compare_where(files: Files, jobs: int) -> None:
    """Vary number and place of new blocks."""
    base = at_best(files, arm(files, BASE, Way(BASE)))
    counts, places = vary(files, COUNTS, (BEST_NAME, COPY)), vary(files, PLACES, (BEST_NAME,))
    run_study(files, "where", [base, *counts, *places], jobs)


def compare_gaps(files: Files, jobs: int) -> None:
    """Put one new block into every gap in turn."""
    base = at_best(files, arm(files, BASE, Way(BASE)))
    run_study(files, "gaps", [base, *vary(files, GAPS, (BEST_NAME, COPY))], jobs)


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
            record = deepen.verify(
                files.base, out, sequences=16, length=files.recipe.sequence_length
            )
            cells.append(f"{record.kl_nats_per_token:.4f}")
        print(f"| {label.removesuffix(', zeroed')} | {' | '.join(cells)} |", flush=True)


def print_tables(files: Files, jobs: int) -> None:
    """Print what the studies found."""
    tables.print_rates(read_rates(files))
    studies = {name: read_records(files.study(name)) for name in FOUND}
    tables.write_csv(files.folder / f"{files.domain}.csv", studies)
    main = studies["methods"]
    if main:
        print("\n### methods\n")
        tables.print_study(main, files.domain, COPY, PAIRS)
    if extras := studies["extras"]:
        print("\n### extras\n")
        beside = [record for record in main if record.arm in (BEST_NAME, COPY)]
        pairs = tuple((label, BEST_NAME) for label in EXTRAS)
        tables.print_study([*extras, *beside], files.domain, COPY, pairs)
    if records := studies["where"]:
        print("\n### where\n")
        usual = [renamed(r, "4, top") for r in main if r.arm in (BEST_NAME, COPY)]
        tables.print_variants([*usual, *records], files.domain, (BEST_NAME, COPY))
    if gaps := studies["gaps"]:
        print("\n### gaps\n")
        tables.print_variants(gaps, files.domain, (BEST_NAME, COPY))


def renamed(record: ArmRecord, variant: str) -> ArmRecord:
    """Return the main study's record as one of a variant."""
    return record.model_copy(update={"arm": f"{record.arm}: {variant}"})


STAGES = {
    "base": make_base,
    "start": measure_start,
    "rates": choose_rates,
    "methods": compare_methods,
    "extras": compare_extras,
    "where": compare_where,
    "gaps": compare_gaps,
    "tables": print_tables,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--domain", choices=("tests", "library"), default="tests")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the base")
    parser.add_argument("--jobs", type=int, default=2, help="arms at once")
    parser.add_argument("--seed", type=int, default=0, help="of the base's weights and order")
    parser.add_argument("--arms", choices=METHODS | EXTRAS, nargs="+", default=(), metavar="ARM")
    asked = parser.parse_args()
    files = Files(asked.folder, asked.domain, SIZES[asked.size], asked.seed, asked.arms)
    STAGES[asked.stage](files, asked.jobs)


if __name__ == "__main__":
    main()
