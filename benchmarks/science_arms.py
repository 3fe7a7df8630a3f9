"""The arms of ``science.py``: what is compared, as data."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from deepen.comparison.study import BASE

BLOCKS = 8
"""Depth of the base."""
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
    ("mean, zeroed, norms", "mean, norms"),
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
    "upper ¾": changed(BEST, upper_share=0.75),
    "matched half": changed(BEST, matched_share=0.5),
    "matched norms": changed(BEST, match_norms=True),
    "output rate × 3": changed(BEST, {"output_rate_factor": 3}),
    "outputs lead 12 steps": changed(BEST, {"output_lead": 12}),
    "rates × 0.7 a block": changed(BEST, {"block_rate_decay": 0.7}),
}
"""Changes to the best arm that might do better."""
COUNTS: dict[str, dict[str, object]] = {
    f"{n} new": {"new_layers": n, "per_gap": per_gap} for n, per_gap in ((1, 1), (2, 1), (8, 2))
}
"""Numbers of new blocks on top, beside four."""
PLACES: dict[str, dict[str, object]] = {
    place: {"placement": place}
    for place in ("middle", "bottom", "top-bottom", "uniform", "quality", "quality-low")
}
"""Places of four new blocks, beside the top."""
GAPS: dict[str, dict[str, object]] = {
    f"gap {gap}": {"new_layers": 1, "placement": f"after:{gap}"}
    for gap in reversed(range(BLOCKS - 1))
}
"""One new block in each gap in turn, from the top: what place does, and what alignment."""
