"""Make the model that an arm trains, and prove what it promises."""

from dataclasses import dataclass
from pathlib import Path

from deepen.common.files import write_whole
from deepen.common.progress import Progress
from deepen.comparison.arm import WIDER, Arm
from deepen.comparison.study import Study
from deepen.growth.grow import grow
from deepen.growth.widen import widen
from deepen.records.growth import GrowRecord
from deepen.records.record import read_record
from deepen.records.verification import VerifyRecord
from deepen.verification.verify import verify

REMEDY = "delete it and run the same command again, which makes it anew"
"""For what an arm keeps on its way."""
_GROWN = "grown.json"


@dataclass(frozen=True)
class Made:
    """An arm's model before training."""

    model: Path | str
    """Where it lies: the study's base, or a checkpoint in the arm's folder."""
    grow: GrowRecord | None
    """How it was grown; ``None`` if it was not."""
    verification: VerifyRecord | None
    """Proof that it is what it claims; ``None`` if it was not grown."""

    @property
    def is_base_s_function(self) -> bool:
        """Whether the model was proven to compute what the base does, to the last bit."""
        return self.verification is not None and self.verification.max_abs_logit_difference == 0


def make(study: Study, arm: Arm, seed: int, folder: Path, progress: Progress) -> Made:
    """Make and prove an arm's model; what an interrupted run made is found again.

    Args:
        study: A settled study.
        arm: One of its arms.
        seed: Of everything random.
        folder: Where a model that is not the base itself goes.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The base cannot be grown so.
        RuntimeError: A grown model is not what it claims.
    """
    if arm.method == WIDER:
        out = folder / "wider"
        if not out.exists():
            widen(study.base, out, arm.training["neurons"], seed=seed, progress=progress)
        return Made(out, None, None)
    if not arm.is_grown:
        return Made(study.base, None, None)
    grown = _grow(study, arm, seed, folder, progress)
    verified = verify(study.base, folder / "grown", progress=progress)
    if not verified.passed:
        failed = "; ".join(f"{c.name}: {c.detail}" for c in verified.checks if not c.passed)
        raise RuntimeError(f"{folder / 'grown'} did not pass verification ({failed})")
    return Made(folder / "grown", grown, verified)


def _grow(study: Study, arm: Arm, seed: int, folder: Path, progress: Progress) -> GrowRecord:
    """Grow the arm's model."""
    kept = folder / _GROWN
    if kept.is_file():
        return read_record(GrowRecord, kept, REMEDY)
    request, out = arm.request(study.new_layers, seed), folder / "grown"
    record = grow(study.base, out, request, overwrite=True, progress=progress)
    write_whole(kept, record.model_dump_json())
    return record
