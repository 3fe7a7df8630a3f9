"""What ``compare`` writes: records of arms, and what they say together."""

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from deepen.records.alignment import AlignmentRecord
from deepen.records.evaluation import EvalRecord
from deepen.records.growth import GrowRecord
from deepen.records.record import Count, Record
from deepen.records.training import TrainRecord
from deepen.records.verification import VerifyRecord

Role = Literal["reference", "alternative", "grown"]
"""What an arm is in a study: the base, trained on as a whole, which the others are held to; another
way to train the base; or a grown model."""


def _number(text: str) -> str:
    """Refuse what is no number."""
    try:
        float(text)
    except ValueError:
        raise ValueError("a learning rate is a number") from None
    return text


Rates = dict[str, dict[Annotated[str, AfterValidator(_number)], float | None]]
"""Label → learning rate → loss on the text that rates are chosen on, ``None`` where training
diverged."""


class ArmRecord(Record):
    """One arm of a study with one seed: a line of records.jsonl."""

    arm: str
    """The arm's label, unique in the study."""
    role: Role
    """What it is in the study."""
    method: str
    """Growth method, or how the base is trained: ``base``, ``lora``, ``top-blocks``, ``wider``."""
    placement: str | None
    """Placement asked for."""
    seed: int
    """Seed of growth, data order and training."""
    grow: GrowRecord | None
    """How it was grown; ``None`` for what is not grown."""
    verification: VerifyRecord | None = None
    """Proof that it is what it claims; ``None`` for what is not grown."""
    alignment: AlignmentRecord | None = None
    """How well the parents of its new blocks align; ``None`` where none were fused."""
    before: EvalRecord
    """Scores before training."""
    train: TrainRecord
    """How it was trained."""
    after: EvalRecord
    """Scores after training."""
    fine_tuning: TrainRecord | None = None
    """How it was fine-tuned after that; ``None`` if the study does not."""
    after_fine_tuning: EvalRecord | None = None
    """Scores after fine-tuning."""


class PairedDifference(Record):
    """Difference of two arms in one score, paired over seeds."""

    arm: str
    """The arm."""
    other: str
    """The arm that is subtracted."""
    score: str
    """For example ``loss_nats_per_token on held_out.txt``, ``acc of piqa``, ``learned``, or
    ``forgotten on old.txt``."""
    seeds: Count
    """Number of pairs."""
    mean: float
    """Mean of arm - other."""
    low: float | None
    """Lower end of the 95 % interval by Student's t; ``None`` with fewer than two pairs."""
    high: float | None
    """Upper end."""


class StudySummary(Record):
    """What ``compare`` concludes from its records: summary.json."""

    study: dict[str, Any]
    """The resolved study."""
    arms: list[str]
    """Labels in the order of the study."""
    roles: dict[str, Role]
    """Label → what the arm is in the study; exactly one is the reference."""
    rates: Rates = Field(default_factory=dict)
    """What was tried; empty where the study chose none."""
    fine_tuning_rates: Rates = Field(default_factory=dict)
    """The same for fine-tuning."""
    seeds: list[int]
    """Seeds of the study."""
    differences: list[PairedDifference]
    """Every arm against the reference, and every arm against every later one, after training."""
    fine_tuned_differences: list[PairedDifference] = Field(default_factory=list)
    """The same after fine-tuning, where the study has it."""
    front: list[str] = Field(default_factory=list)
    """Labels of the arms that no other beats both in what is learned and in what is forgotten, by
    their means over seeds; none where not both are measured."""
    fine_tuned_front: list[str] = Field(default_factory=list)
    """The same after fine-tuning."""
    versions: dict[str, str]
    """Software."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Insist that every arm has a role, and that nothing is said of arms that are not there."""
        for what, given in (("arms", self.arms), ("seeds", self.seeds)):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{what} are none, or one stands there twice")
        differences = [*self.differences, *self.fine_tuned_differences]
        told: dict[str, Collection[str]] = {
            "roles": self.roles,
            "front": self.front,
            "fine_tuned_front": self.fine_tuned_front,
            "rates": self.rates,
            "fine_tuning_rates": self.fine_tuning_rates,
            "differences": {arm for one in differences for arm in (one.arm, one.other)},
        }
        for key, named in told.items():
            if unknown := sorted({*named} - {*self.arms}):
                raise ValueError(f"{key} names {unknown[0]!r}, which is none of arms")
        if missing := [arm for arm in self.arms if arm not in self.roles]:
            raise ValueError(f"roles lacks the arm {missing[0]!r}")
        return self
