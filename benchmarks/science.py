"""Which alignment starts and learns best? The studies of docs/results.md, from nothing.

    python benchmarks/science.py runs/science base       # texts, tokenizer, a base of 1.7M
    python benchmarks/science.py runs/science start      # how far the function moves at the start
    python benchmarks/science.py runs/science rates      # every arm at a grid of learning rates
    python benchmarks/science.py runs/science methods    # every arm at its best one, five seeds
    python benchmarks/science.py runs/science extras     # what might do better still
    python benchmarks/science.py runs/science counts     # how many new blocks, and where
    python benchmarks/science.py runs/science tables     # Markdown of all that is there

Each stage needs the ones above it and resumes where it was. The base is trained on the standard
library without its tests. Arms go on with those tests, a kind of text that the base never saw, or
with ``--domain library`` on the same text. Learning rates are chosen for each on a seed and on
held-out files that the later stages do not use. Two arms run at once (``--jobs``).
"""

import argparse
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

import deepen
from deepen import printing
from deepen.comparison.aggregate import BASE, paired_differences
from deepen.comparison.run import compare, read_records
from deepen.comparison.study import Study
from deepen.demo.corpus import read_corpus
from deepen.demo.material import END_OF_DOCUMENT, new_model, train_tokenizer
from deepen.demo.recipe import FULL, Budget, DemoRecipe
from deepen.results import ArmRecord, PairedDifference
from deepen.training.recipe import Recipe
from deepen.training.run import train

RECIPE: DemoRecipe = FULL.model_copy(
    update={"hidden": 128, "ffn": 352, "base": Budget(steps=5000, sequences=4, learning_rate=2e-3)}
)
LENGTH, STEPS, SEQUENCES, SCORED = RECIPE.sequence_length, 120, 4, 16_384
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
RATES_OF_EVERYTHING = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
SEEDS, CHOOSING_SEED = (0, 1, 2, 3, 4), 100

Options = dict[str, Any]
FUSED: dict[str, tuple[str, Options]] = {
    "published": ("opt-deus", {"fidelity": "published"}),
    "normalised": ("opt-deus", {"fidelity": "normalised"}),
    "structured": ("opt-deus", {"fidelity": "structured"}),
    "structured, activations": ("opt-deus", {"fidelity": "structured", "cost": "activations"}),
    "mean, zeroed": ("avg-deus", {"output_scale": 0}),
    "LESA, zeroed": ("lesa", {"output_scale": 0}),
}
"""Arms that average or predict, and zero the outputs."""
OTHERS: dict[str, tuple[str, Options]] = {
    "copy, zeroed": ("llama-pro", {}),
    "random, zeroed": ("random", {}),
    "mean": ("avg-deus", {}),
    "LESA": ("lesa", {}),
    "SOLAR": ("solar", {}),
}


EXTRAS: dict[str, tuple[str, Options]] = {
    "features × 1.5": ("opt-deus", {"restore_norms": True, "feature_scale": 1.5}),
    "outputs × ¼": ("opt-deus", {"restore_norms": True, "output_scale": 0.25}),
    "entropic": ("opt-deus", {"restore_norms": True, "solver": "entropic"}),
    "mean, outputs × ¼": ("avg-deus", {"restore_norms": True, "output_scale": 0.25}),
    "copy, features × 1.5": ("llama-pro", {"feature_scale": 1.5}),
}
"""Changes to the best arm, structured with restored norms, that might do better."""
BEST: tuple[str, Options] = ("opt-deus", {"fidelity": "structured", "restore_norms": True})
BEST_NAME = "structured, norms"


class Files:
    """Where everything lies."""

    def __init__(self, folder: Path, domain: str) -> None:
        """Name the files below a folder."""
        self.folder, self.domain = folder, domain
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
            "seed": 1000,
            "output": str(files.folder / "base"),
        }
    )
    with printing.progress_bar() as progress:
        record = train(recipe, "cpt", progress=progress)
    print(f"base: {record.parameters:,} parameters, {record.tokens:,} tokens, ", end="")
    print(f"{record.wall_seconds:.0f} s, loss {record.curve[-1].loss_nats_per_token:.3f}")


def arm(label: str, method: str, options: Options, files: Files, **more: object) -> dict[str, Any]:
    """Describe an arm; new blocks go into the gaps of the top half, whatever the method."""
    if options.get("cost") == "activations":
        options = {**options, "calibration": str(files.calibration)}
    if method == "opt-deus":
        options = {"restore_norms": False, **options}
    placed = {} if method in (BASE, "solar") else {"placement": "top"}
    return {"label": label, "method": method, "options": options, **placed, **more}


def all_arms(files: Files) -> Iterator[dict[str, Any]]:
    """Yield every arm of the main study."""
    yield arm(BASE, BASE, {}, files)
    for label, (method, options) in (FUSED | OTHERS).items():
        yield arm(label, method, options, files)
    for label in ("normalised", "structured", "mean, zeroed"):
        method, options = FUSED[label]
        yield arm(f"{label}, norms", method, {**options, "restore_norms": True}, files)


def run_study(
    files: Files,
    name: str,
    arms: Sequence[dict[str, Any]],
    jobs: int,
    *,
    part: str = "scoring",
    seeds: Sequence[int] = SEEDS,
) -> list[ArmRecord]:
    """Run one study and return its records."""
    texts = [files.text(d, part) for d in ("library", "tests")]
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


def loss(record: ArmRecord, domain: str) -> float:
    """Return a record's loss after training on one domain's held-out text."""
    return next(t for t in record.after.texts if t.file.startswith(domain)).loss_nats_per_token


def rates_of(method: str) -> tuple[float, ...]:
    """Return the learning rates to try: lower ones where everything trains."""
    return RATES_OF_EVERYTHING if method in (BASE, "solar") else RATES


def choose_rates(files: Files, jobs: int) -> None:
    """Find every arm's best learning rate, on a seed and on files of their own."""
    try_rates(files, "rates", list(all_arms(files)), jobs)


def try_rates(files: Files, name: str, tried: Sequence[dict[str, Any]], jobs: int) -> None:
    """Run arms at a grid of learning rates and note their losses."""
    arms = [
        {**one, "label": f"{one['label']} at {rate:g}", "training": {"learning_rate": rate}}
        for one in tried
        for rate in rates_of(one["method"])
    ]
    found: dict[str, dict[str, float]] = {}
    if files.rates.is_file():
        found = json.loads(files.rates.read_text(encoding="utf-8"))
    for record in run_study(files, name, arms, jobs, part="choosing", seeds=[CHOOSING_SEED]):
        label, asked, rate = record.arm.rpartition(" at ")
        if not asked:  # the un-grown base, which every study has
            continue
        found.setdefault(label, {})[rate] = loss(record, files.domain)
    files.rates.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def best_rate(files: Files, label: str) -> float:
    """Return the learning rate that an arm did best with."""
    losses = json.loads(files.rates.read_text(encoding="utf-8"))[label]
    return float(min(losses, key=losses.get))


def at_best(files: Files, one: dict[str, Any], like: str = "") -> dict[str, Any]:
    """Give an arm its best learning rate, or that of another one."""
    return {**one, "training": {"learning_rate": best_rate(files, like or one["label"])}}


def compare_methods(files: Files, jobs: int) -> None:
    """Run every arm at its best learning rate."""
    run_study(files, "methods", [at_best(files, one) for one in all_arms(files)], jobs)


def compare_extras(files: Files, jobs: int) -> None:
    """Run what might do better, at its own best learning rate, beside what it changes."""
    arms = [arm(label, *method, files) for label, method in EXTRAS.items()]
    try_rates(files, "rates-extras", arms, jobs)
    known = {BASE: (BASE, {}), BEST_NAME: BEST, "copy, zeroed": OTHERS["copy, zeroed"]}
    beside = [arm(label, *one, files) for label, one in known.items()]
    run_study(files, "extras", [at_best(files, one) for one in (*beside, *arms)], jobs)


def compare_counts(files: Files, jobs: int) -> None:
    """Vary the number of new blocks and where they stand."""
    arms = [at_best(files, arm(BASE, BASE, {}, files))]
    for method, (name, options) in {
        BEST_NAME: BEST,
        "copy, zeroed": OTHERS["copy, zeroed"],
    }.items():
        for new, per_gap in ((1, 1), (2, 1), (4, 1), (8, 2)):
            one = arm(f"{method}: {new} new", name, options, files, new_layers=new, per_gap=per_gap)
            arms.append(at_best(files, one, method))
        for place in ("middle", "bottom", "top-bottom", "uniform", "quality", "quality-low"):
            one = arm(f"{method}: {place}", name, options, files) | {"placement": place}
            arms.append(at_best(files, one, method))
    run_study(files, "counts", arms, jobs, seeds=SEEDS[:3])


def measure_start(files: Files, jobs: int) -> None:
    """Measure how far the function moves when output projections are kept in part."""
    print("| method | ¼ | ½ | 1 |\n|---|---|---|---|")
    arms = {**{k: v for k, v in FUSED.items() if v[0] != "lesa"}, "copy": ("llama-pro", {})}
    for label, (method, options) in arms.items():
        cells = []
        for scale in (0.25, 0.5, 1.0):
            one = arm(label, method, {**options, "output_scale": scale}, files)
            out = files.folder / "grown"
            how = {"placement": "top", "options": one["options"], "overwrite": True}
            deepen.grow(files.base, out, method=method, **how)
            record = deepen.verify(files.base, out, sequences=16, length=LENGTH)
            cells.append(f"{record.kl_nats_per_token:.4f}")
        print(f"| {label.removesuffix(', zeroed')} | {' | '.join(cells)} |", flush=True)


def interval(difference: PairedDifference) -> str:
    """Write a difference with its interval, in thousandths of a nat."""
    assert difference.low is not None
    assert difference.high is not None
    mean, low, high = (1000 * x for x in (difference.mean, difference.low, difference.high))
    sure = "" if low <= 0 <= high else " *"
    return f"{mean:+.1f} ({low:+.1f} … {high:+.1f}){sure}"


def print_tables(files: Files, jobs: int) -> None:
    """Print what the studies found."""
    if files.rates.is_file():
        print("\n### Learning rates\n\n| arm | lowest | | | | highest |\n|---|---|---|---|---|---|")
        for label, losses in json.loads(files.rates.read_text(encoding="utf-8")).items():
            least = min(losses.values())
            cells = (
                f"**{x:.4f}** at {float(rate):g}" if x == least else f"{x:.4f}"
                for rate, x in losses.items()
            )
            print(f"| {label} | {' | '.join(cells)} |")
    for name in ("methods", "extras", "counts"):
        if records := read_records(files.study(name)):
            print(f"\n### {name}\n")
            print_study(records, files.domain)


def print_study(records: list[ArmRecord], domain: str) -> None:
    """Print one study: losses on both domains, and differences from plain copies."""
    arms = list(dict.fromkeys(record.arm for record in records))
    reference = next(a for a in arms if a in ("copy, zeroed", "copy, zeroed: 4 new"))
    other = "tests" if domain == "library" else "library"
    print(f"| arm | rate | loss on {domain} | on {other} | area under the curve | start | ", end="")
    print(f"− {reference}, thousandths of a nat |")
    print("|---|---|---|---|---|---|---|")
    differences = {
        (d.arm, d.other): d
        for d in paired_differences(records, arms)
        if d.score.startswith("loss_nats_per_token") and domain in d.score
    }
    for name in arms:
        own = [record for record in records if record.arm == name]
        rate = own[0].train.recipe["training"]["learning_rate"]
        start = fmean(
            next(t for t in r.before.texts if t.file.startswith(domain)).loss_nats_per_token
            for r in own
        )
        area = fmean(fmean(p.loss_nats_per_token for p in r.train.curve) for r in own)
        on, off = (fmean(loss(record, d) for record in own) for d in (domain, other))
        gap = "–"
        if (name, reference) in differences:
            gap = interval(differences[name, reference])
        elif (reference, name) in differences:
            d = differences[reference, name]
            turned = {"mean": -d.mean, "low": -(d.high or 0), "high": -(d.low or 0)}
            gap = interval(d.model_copy(update=turned))
        print(f"| {name} | {rate:g} | {on:.4f} | {off:.4f} | {area:.4f} | {start:.4f} | {gap} |")


STAGES = {
    "base": make_base,
    "start": measure_start,
    "rates": choose_rates,
    "methods": compare_methods,
    "extras": compare_extras,
    "counts": compare_counts,
    "tables": print_tables,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--domain", choices=("tests", "library"), default="tests")
    parser.add_argument("--jobs", type=int, default=2, help="arms at once")
    asked = parser.parse_args()
    STAGES[asked.stage](Files(asked.folder, asked.domain), asked.jobs)


if __name__ == "__main__":
    main()
