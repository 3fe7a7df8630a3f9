"""Differences between arms, from the CSV files of ``science.py``; those of several bases pooled.

    python benchmarks/science_pairs.py docs/science-tests.csv docs/science-second-base.csv

Thousandths of a nat on new text (tests) and old (library) after training, 95 % interval.
"""

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from science_arms import BEST_NAME, COPY, EXTRAS, GAPS, PAIRS
from science_tables import told

Losses = dict[tuple[str, int], dict[str, float]]
"""Arm and seed → loss on each text."""
TEXTS = ("tests", "library")


def read(file: str) -> Losses:
    """Read what every run came to."""
    with Path(file).open(encoding="utf-8") as opened:
        return {
            (row["arm"], int(row["seed"])): {text: float(row[f"{text}_after"]) for text in TEXTS}
            for row in csv.DictReader(opened)
        }


def differences(bases: Sequence[Losses], arm: str, other: str, text: str) -> list[float]:
    """Return arm - other, for every base and seed that has both."""
    return [
        1000 * (losses[arm, seed][text] - losses[other, seed][text])
        for losses in bases
        for name, seed in losses
        if name == arm and (other, seed) in losses
    ]


def show(name: str, measure: Callable[[str], Sequence[float]]) -> None:
    """Print one line."""
    found = [measure(text) for text in TEXTS]
    if found[0]:
        print(f"| {name} | {len(found[0])} | {' | '.join(map(told, found))} |")


def main() -> None:
    """Print every pair of arms, and the mean over all gaps."""
    bases = [read(file) for file in sys.argv[1:]]
    print("| | pairs | new text | old text |\n|---|---|---|---|")
    for arm, other in ((BEST_NAME, COPY), *PAIRS, *((extra, BEST_NAME) for extra in EXTRAS)):
        show(f"{arm} − {other}", lambda text, a=arm, b=other: differences(bases, a, b, text))

    def over_gaps(text: str) -> list[float]:
        each = [differences(bases, f"{BEST_NAME}: {gap}", f"{COPY}: {gap}", text) for gap in GAPS]
        return [fmean(seeds) for seeds in zip(*each, strict=True)]

    show(f"{BEST_NAME} − {COPY}, mean over one new block in each gap", over_gaps)


if __name__ == "__main__":
    main()
