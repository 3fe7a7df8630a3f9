"""An arm of a study: one way to make the model that is trained, and to train it."""

import copy
import itertools
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from deepen.records.growth import GrowChoice, GrowRequest

BASE = "base"
"""Method of an arm that is the base, trained on."""
LORA, TOP_BLOCKS, WIDER = "lora", "top-blocks", "wider"
"""Methods of arms that train the base in another way."""
NOT_GROWN = (BASE, LORA, TOP_BLOCKS, WIDER)
"""Methods of arms that are no deeper than the base."""
MOST_ARMS = 200
PARTS = ("trains", "also", "lora", "neurons")
"""Settings of training that say which part trains: alike in pre-training and fine-tuning."""


class Arm(GrowChoice):
    """One way to make the model that is trained; what it leaves out is the study's."""

    method: str
    """Growth method; or ``base``, the base trained on, ``lora``, ``top-blocks`` or ``wider``."""
    label: Annotated[str, Field(max_length=1000)] = ""
    """Name in records and report; by default the method and what is said beside it."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of continual pre-training that are this arm's own, for example a learning rate."""
    fine_tuning: dict[str, Any] = Field(default_factory=dict)
    """Settings of fine-tuning that are this arm's own."""
    replay: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of the sequences that come from the study's old text."""
    rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=list, max_length=100
    )
    """Learning rates that the study's search begins with for this arm, instead of its grid."""

    @property
    def name(self) -> str:
        """The label."""
        own = dict(self.options)
        own |= {k: v for k in ("placement", "new_layers") if (v := getattr(self, k)) is not None}
        own |= {"per_gap": self.per_gap} if self.per_gap != 1 else {}
        own |= self.training
        own |= {f"fine_tuning.{key}": value for key, value in self.fine_tuning.items()}
        own |= {"replay": self.replay} if self.replay else {}
        details = ", ".join(f"{key}={value}" for key, value in own.items())
        return self.label or (f"{self.method} ({details})" if details else self.method)

    @property
    def folder(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^\w.=-]+", "_", self.name).strip("_")

    @property
    def is_grown(self) -> bool:
        """Whether the arm's model is deeper than the base."""
        return self.method not in NOT_GROWN

    def request(self, new_layers: int | None, seed: int) -> GrowRequest:
        """Return how the arm's model is grown.

        Args:
            new_layers: Number of new blocks where the arm does not say.
            seed: Of everything random.
        """
        choice = {name: getattr(self, name) for name in GrowChoice.model_fields}
        choice["new_layers"] = self.new_layers or new_layers
        return GrowRequest(**choice, seed=seed)


def written_out(arms: object) -> object:
    """Write out short forms: a method alone, and an arm that varies something.

    ``vary: {placement: [top, bottom], options.output_scale: [0, 1]}`` stands for an arm with each
    combination of the values; keys are dotted, and the values join the label.
    """
    if not isinstance(arms, list):
        return arms
    return [one for arm in arms for one in _written_out(arm)]


def _written_out(arm: object) -> Iterator[object]:
    """Yield what one entry stands for."""
    if isinstance(arm, str):
        yield {"method": arm}
        return
    vary = arm.get("vary") if isinstance(arm, dict) else None
    lists = isinstance(vary, dict) and vary and all(v and type(v) is list for v in vary.values())
    if not isinstance(arm, dict) or not lists:
        yield arm
        return
    assert isinstance(vary, dict)
    if (count := math.prod(map(len, vary.values()))) > MOST_ARMS:
        raise ValueError(f"vary stands for {count:,} arms, and a study has {MOST_ARMS:,} at most")
    for values in itertools.product(*vary.values()):
        one = copy.deepcopy({key: value for key, value in arm.items() if key != "vary"})
        for dotted, value in zip(vary, values, strict=True):
            *parents, last = str(dotted).split(".")
            place = one
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise ValueError(f"vary names {dotted!r}, and {parent!r} has no keys")
            place[last] = value
        if one.get("label"):
            one["label"] = f"{one['label']}: {', '.join(map(str, values))}"
        yield one
