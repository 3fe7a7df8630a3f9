"""Pairs of arms over several studies: the same labels on several bases."""

import re
from collections.abc import Mapping, Sequence

from deepen.common.errors import DeepenError, unknown
from deepen.comparison.balance import Values, paired, values
from deepen.comparison.statistics import reference
from deepen.records.study import ArmRecord, PairedDifference

Pair = tuple[str, str]
"""The arm, and the one that is subtracted."""
Studies = Mapping[str, Sequence[ArmRecord]]
"""Name of a study → its records."""


def pooled(studies: Studies, pairs: Sequence[Pair]) -> list[PairedDifference]:
    """Compare pairs of arms over all runs of all studies.

    A run is paired with the run of the other arm in the same study with the same seed, and every
    such pair counts alike: the interval is Student's t over all of them. It speaks of the studies
    at hand; whether further bases are like them it cannot say.

    Args:
        studies: Name of a study → its records.
        pairs: Labels; a study that lacks one of them does not count for that pair.

    Returns:
        Differences in everything that is measured in all studies that count, under the same name;
        ``seeds`` is the number of pairs of runs.
    """
    runs: dict[tuple[str, tuple[int, int]], Mapping[str, float]] = {}
    for place, records in enumerate(studies.values()):
        runs |= {(arm, (place, seed)): run for (arm, seed), run in values(records).items()}
    return paired(runs, pairs)


def one_by_one(studies: Studies, pairs: Sequence[Pair]) -> dict[str, list[PairedDifference]]:
    """Compare pairs of arms in each study by itself."""
    of_study: dict[str, Values] = {name: values(records) for name, records in studies.items()}
    return {name: paired(runs, pairs) for name, runs in of_study.items()}


def chosen_pairs(studies: Studies, asked: Sequence[str], named: Sequence[Pair] = ()) -> list[Pair]:
    """Return the pairs to compare: those asked for, else those named, else all with the reference.

    Args:
        studies: Name of a study → its records.
        asked: Each ``arm - other``.
        named: Pairs that the studies themselves name.

    Raises:
        DeepenError: One of those asked for is not of that form, or names no arm of any study.
    """
    of_study = [list(dict.fromkeys(r.arm for r in records)) for records in studies.values()]
    labels = list(dict.fromkeys(label for arms in of_study for label in arms))
    if asked:
        return [_pair(text, labels) for text in asked]
    there = [pair for pair in dict.fromkeys(named) if set(pair) <= set(labels)]
    if there:
        return there
    bases = [reference(records) for records in studies.values()]
    base = next((base for base in bases if base is not None), None)
    return [] if base is None else [(arm, base) for arm in labels if arm != base]


def _pair(text: str, labels: Sequence[str]) -> Pair:
    """Read ``arm - other``, where labels may hold such a sign themselves."""
    splits = [
        (text[: found.start()].strip(), text[found.end() :].strip())
        for found in re.finditer(r"\s[-\N{MINUS SIGN}]\s", text)
    ]
    if not splits:
        raise DeepenError(
            f"The pair {text!r} is not of the form 'arm - other'; put spaces around the sign."
        )
    fitting = [split for split in splits if set(split) <= set(labels)]
    if fitting:
        return fitting[0]
    missing = next(label for label in splits[0] if label not in labels)
    raise unknown("arm (--pairs)", missing, labels)
