"""Which score of a gap says before training what training then finds there.

Usage::

    python benchmarks/placement.py BASE benchmarks/results/smollm2-gaps.csv
        [--text registry:portuguese/choosing] [--out runs/placement]

Scores every gap of a base in each way that placements measure, and holds the scores to the runs of
a study that trained one new block in one gap after the other (arms named ``gap: after:N``): rank
correlation (Spearman) with what was learned, means over seeds, beside that of the gap's height
alone. A score that placements prefer when it is small counts with its sign turned. The interval of
95 % is that of Bonett and Wright (Psychometrika 65, 2000) for that many gaps. Scores are kept in
OUT and not measured twice.
"""

import argparse
import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from scipy.stats import spearmanr

import deepen

_PREFERS = {"gradient": 1, "importance": -1, "influence": -1, "quality": 1}
"""Score → whether placements prefer it large."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--text", default="registry:portuguese/choosing")
    parser.add_argument("--out", type=Path, default=Path("runs/placement"))
    given = parser.parse_args()
    learned = _learned(given.runs)
    found = {"height": list(map(float, range(1 + max(learned))))}
    given.out.mkdir(parents=True, exist_ok=True)
    for by, sign in _PREFERS.items():
        for text in (None, given.text):
            if (by, text is None) not in {("gradient", True), ("quality", False)}:
                name = by if by == "quality" else f"{by} ({text or 'passage'})"
                values = _scores(given.base, by, text, given.out)
                found[name] = [sign * value for value in values]
    print(_table(learned, found))


def _learned(file: Path) -> dict[int, float]:
    """Read what was learned in each gap, as a mean over seeds, in nats per token."""
    runs = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as lines:
        for run in csv.DictReader(lines):
            if gap := re.fullmatch(r"gap: after:(\d+)", run["arm"]):
                runs[int(gap[1])].append(float(run["learned"]))
    return {gap: fmean(values) for gap, values in sorted(runs.items())}


def _scores(base: str, by: str, text: str | None, out: Path) -> list[float]:
    """Score a base's gaps, or read what was measured before."""
    kept = out / f"{by}-{re.sub(r'[^a-z0-9]+', '-', text or 'passage')}.json"
    if not kept.exists():
        plan = deepen.plan(base, method="llama-pro", placement=by, new_layers=1, calibration=text)
        scores = plan.growth.step.scores
        assert scores is not None
        kept.write_text(json.dumps(scores.values))
    values: list[float] = json.loads(kept.read_text())
    return values


def _interval(rank: float, gaps: int) -> tuple[float, float]:
    """Return the ends of a rank correlation's interval."""
    if gaps < 4:
        return -1.0, 1.0
    width = 1.959964 * math.sqrt((1 + rank**2 / 2) / (gaps - 3))
    middle = math.atanh(min(max(rank, -0.999999), 0.999999))
    return math.tanh(middle - width), math.tanh(middle + width)


def _table(learned: Mapping[int, float], found: Mapping[str, Sequence[float]]) -> str:
    """Write all gaps' scores and, below, their rank correlations with what was learned."""
    lines = [
        f"| gap above block | learned, nats per token | {' | '.join(found)} |",
        f"|{'---|' * (2 + len(found))}",
    ]
    for gap, gain in learned.items():
        scores = " | ".join(f"{abs(values[gap]):.3g}" for values in found.values())
        lines.append(f"| {gap} | {gain:.3f} | {scores} |")
    lines += ["", "| score | rank correlation with what was learned (95 %) |", "|---|---|"]
    for name, values in found.items():
        rank = float(spearmanr([values[gap] for gap in learned], list(learned.values()))[0])
        low, high = _interval(rank, len(learned))
        lines.append(f"| {name} | {rank:+.2f} ({low:+.2f} … {high:+.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
