"""The tables of ``science.py``: records → Markdown, and one line per run as CSV."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from deepen.comparison.statistics import interval, of_arm
from deepen.records.evaluation import EvalRecord
from deepen.records.study import ArmRecord

Measure = Callable[[ArmRecord], float]


def loss(scores: EvalRecord, domain: str) -> float:
    """Return the loss on one domain's held-out text, in nats per token."""
    return next(t for t in scores.texts if t.file.startswith(domain)).loss_nats_per_token


def after(domain: str) -> Measure:
    """Measure the loss on a domain after training."""
    return lambda record: loss(record.after, domain)


def area(record: ArmRecord) -> float:
    """Measure the area under the training curve, as its mean loss."""
    return fmean(point.loss_nats_per_token for point in record.train.curve)


def quarter(which: int) -> Measure:
    """Measure the mean training loss in a quarter of the run, 0 to 3."""

    def measure(record: ArmRecord) -> float:
        curve = record.train.curve
        points = curve[which * len(curve) // 4 : (which + 1) * len(curve) // 4]
        return fmean(point.loss_nats_per_token for point in points)

    return measure


def mean(records: Iterable[ArmRecord], measure: Measure) -> float:
    """Average over the seeds of an arm."""
    return fmean(measure(record) for record in records)


def difference(records: Sequence[ArmRecord], arm: str, other: str, measure: Measure) -> str:
    """Write arm - other, paired by seed, in thousandths of a nat, with its 95 % interval."""
    ours, theirs = ({r.seed: measure(r) for r in of_arm(records, name)} for name in (arm, other))
    pairs = [1000 * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
    if arm == other or not pairs:
        return "–"
    return told(pairs)


def told(pairs: Sequence[float]) -> str:
    """Write the mean of paired differences with its 95 % interval, bold if that has no zero."""
    middle, low, high = interval(pairs)
    if low is None or high is None:
        return f"{middle:+.1f}".replace("-", "−")
    cell = f"{middle:+.1f} ({low:+.1f} … {high:+.1f})"
    return (cell if low <= 0 <= high else f"**{cell}**").replace("-", "−")


def print_rates(rates: Mapping[str, Mapping[float, float]]) -> None:
    """Print the losses of every arm at every learning rate."""
    columns = sorted({rate for losses in rates.values() for rate in losses})
    print(f"\n### Learning rates\n\n| arm | {' | '.join(f'{rate:g}' for rate in columns)} |")
    print(f"|{'---|' * (len(columns) + 1)}")
    for label, losses in rates.items():
        least = min(losses.values())
        cells = (f"{losses[rate]:.4f}" if rate in losses else "" for rate in columns)
        print(f"| {label} | {' | '.join(cells)} |".replace(f"{least:.4f}", f"**{least:.4f}**"))


def print_study(
    records: Sequence[ArmRecord], domain: str, copy: str, pairs: Iterable[tuple[str, str]]
) -> None:
    """Print every arm of a study, best first, and pairs of arms."""
    other = "tests" if domain == "library" else "library"
    arms = sorted(
        {record.arm for record in records},
        key=lambda arm: mean(of_arm(records, arm), after(domain)),
    )
    seeds = len({record.seed for record in records})
    print(f"{seeds} seeds; differences are from {copy!r}, thousandths of a nat (95 %).\n")
    print(
        f"| arm | rate | loss on {domain} | difference | area under the curve | difference ", end=""
    )
    print(f"| loss on {other} | difference | {domain} before | {other} before |")
    print(f"|{'---|' * 10}")
    for arm in arms:
        own = of_arm(records, arm)
        cells = [arm, f"{own[0].train.recipe['training']['learning_rate']:g}"]
        for measure in (after(domain), area, after(other)):
            cells += [f"{mean(own, measure):.4f}", difference(records, arm, copy, measure)]
        cells += [f"{mean(own, lambda r, d=d: loss(r.before, d)):.4f}" for d in (domain, other)]
        print(f"| {' | '.join(cells)} |")
    print(f"\nTraining loss − that of {copy!r}, quarter by quarter of the run:\n")
    print(f"| arm | first | second | third | fourth |\n|{'---|' * 5}")
    for arm in arms:
        cells = (difference(records, arm, copy, quarter(which)) for which in range(4))
        print(f"| {arm} | {' | '.join(cells)} |")
    found = [
        (f"{arm} − {other_arm}", difference(records, arm, other_arm, after(domain)))
        for arm, other_arm in pairs
    ]
    for pair, cell in found:
        if cell != "–":
            print(f"\n{pair}: {cell}")


def print_variants(records: Sequence[ArmRecord], domain: str, ways: Sequence[str]) -> None:
    """Print numbers or places of new blocks, with every way that has them.

    Args:
        records: Arms named ``way: variant``; differences are from the first variant.
        domain: The text that was trained on.
        ways: The ways.
    """
    arms = {record.arm for record in records}
    variants = list(dict.fromkeys(r.arm.split(": ")[1] for r in records if ": " in r.arm))
    other, first = "tests" if domain == "library" else "library", variants[0]
    head = " | ".join(f"{way} | − {first} | on {other}" for way in ways)
    print(f"| new blocks | {head} | {ways[0]} − {ways[1]} |")
    print(f"|{'---|' * (2 + 3 * len(ways))}")
    for variant in variants:
        cells = [variant]
        for way in ways:
            name = f"{way}: {variant}"
            if name not in arms:
                cells += ["", "", ""]
                continue
            own = of_arm(records, name)
            cells += [
                f"{mean(own, after(domain)):.4f}",
                difference(records, name, f"{way}: {first}", after(domain)),
                f"{mean(own, after(other)):.4f}",
            ]
        pair = (f"{way}: {variant}" for way in ways)
        cells.append(difference(records, *pair, after(domain)))
        print(f"| {' | '.join(cells)} |")


def write_csv(file: Path, studies: Mapping[str, Sequence[ArmRecord]]) -> None:
    """Write what every run came to, so that arms can be paired by seed without their records.

    Args:
        file: Where to.
        studies: Name → records.
    """
    with file.open("w", encoding="utf-8", newline="") as opened:
        lines = csv.writer(opened, lineterminator="\n")
        losses = ("library_before", "tests_before", "library_after", "tests_after")
        lines.writerow(["study", "arm", "seed", "learning_rate", "curve_mean", *losses])
        for study, records in studies.items():
            for record in records:
                rate = record.train.recipe["training"]["learning_rate"]
                row = [study, record.arm, record.seed, f"{rate:g}", f"{area(record):.5f}"]
                for scores in (record.before, record.after):
                    row += [f"{loss(scores, domain):.5f}" for domain in ("library", "tests")]
                lines.writerow(row)
