"""The tables of docs/results.md from the runs in benchmarks/results/, without running a study.

Usage::

    python benchmarks/tables.py benchmarks/results/smollm2-alternatives.csv [more.csv]
        [--pairs 'opt-deus - lora' ...]

Prints what each arm learned and forgot, in nats per token as means over its runs, and the pairs of
arms in thousandths of a nat, paired by study and seed, with the 95 % interval of Student's t. A
file is what ``deepen report FOLDER --csv FILE`` wrote; of several files the pairs are pooled.
"""

import argparse
import csv
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import mean

from deepen.comparison.balance import paired

_GAINS = ("learned", "forgotten")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--pairs", nargs="+", metavar="'ARM - OTHER'")
    given = parser.parse_args()
    runs = [run for file in given.files for run in _read(file)]
    print(_arms(runs))
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    pairs = [_pair(text, arms, parser) for text in given.pairs or []]
    print(_pairs(runs, pairs or list(combinations(arms, 2))))


def _read(file: Path) -> list[dict[str, str]]:
    """Read a file's runs, column → entry."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _pair(text: str, arms: list[str], parser: argparse.ArgumentParser) -> tuple[str, str]:
    """Read ``arm - other``."""
    arm, _, other = text.partition(" - ")
    if not {arm, other} <= set(arms):
        parser.error(f"no such pair: {text!r}; the arms are {', '.join(arms)}")
    return arm, other


def _scores(run: dict[str, str]) -> dict[str, float]:
    """Return what a run learned and forgot, over all texts and, if there are more, of each."""
    found = {name: float(run[name]) for name in _GAINS if run.get(name)}
    for side, gain, sign in (("new", "learned", -1), ("old", "forgotten", 1)):
        texts = [m[1] for c, e in run.items() if e and (m := re.fullmatch(f"{side} (.+) after", c))]
        for text in texts if len(texts) > 1 else ():
            change = float(run[f"{side} {text} after"]) - float(run[f"{side} {text} before"])
            found[f"{gain} {text}"] = sign * change
    return found


def _arms(runs: list[dict[str, str]]) -> str:
    """Write the table of means."""
    of_arm = defaultdict(list)
    for run in runs:
        of_arm[run["study"], run["arm"], run["learning_rate"]].append(run)
    scores = list(dict.fromkeys(name for run in runs for name in _scores(run)))
    names = ["study", "arm", "rate", "seeds", "tokens", "seconds", "GB", *scores]
    lines = [" | ".join(names)]
    for (study, arm, rate), own in of_arm.items():
        cells = [study, arm, rate, str(len(own)), own[0]["tokens"]]
        cells += [f"{mean(float(run['seconds']) for run in own):.0f}"]
        cells += [f"{mean(float(run['peak_bytes']) for run in own) / 1e9:.1f}"]
        for score in scores:
            there = [_scores(run)[score] for run in own if score in _scores(run)]
            cells.append(f"{mean(there):+.3f}" if there else "–")
        lines.append(" | ".join(cells))
    return "\n".join(lines) + "\n"


def _pairs(runs: list[dict[str, str]], pairs: list[tuple[str, str]]) -> str:
    """Write the table of paired differences; * = an interval without zero."""
    values = {(run["arm"], (run["study"], run["seed"])): _scores(run) for run in runs}
    lines = ["pair | score | runs | mean | 95 % interval"]
    for found in paired(values, pairs):
        low, high = found.low, found.high
        shown = "–" if low is None or high is None else f"{low * 1e3:+.0f} … {high * 1e3:+.0f}"
        clear = "*" if low is not None and high is not None and low * high > 0 else ""
        pair = f"{found.arm} − {found.other}"
        lines.append(
            f"{pair} | {found.score} | {found.seeds} | {found.mean * 1e3:+.0f}{clear} | {shown}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
