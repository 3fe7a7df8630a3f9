"""What a checkpoint that was grown or trained claims to be, and whether its claims agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

from deepen import methods
from deepen.base.checkpoint import Source
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.methods.options import Options
from deepen.planning.plan import Keep, Plan
from deepen.records.growth import BaseIdentity, Step, Training, read_entry
from deepen.records.verification import Check
from deepen.verification.trained import since, stored_dtype, trained_elsewhere

_COMBINED = ("interleave", "average")
"""What packs are put together by; no methods, but growths all the same."""


@dataclass(frozen=True)
class Claim:
    """What a checkpoint that was grown or trained claims to be."""

    base: BaseIdentity | None
    """The base, as it was recorded."""
    depth: int
    """Number of blocks of the base."""
    steps: list[Step]
    """The growths that lead from the base to it."""
    trainings: list[Training]
    """What was trained in between and since, blocks counted as in it."""

    @cached_property
    def plan(self) -> Plan:
        """The stack, as one growth of the base."""
        kept = Plan(self.depth, tuple(map(Keep, range(self.depth))))
        plans = [Plan.from_json(step.plan) for step in self.steps]
        return reduce(Plan.then, plans) if plans else kept

    @property
    def preserves_function(self) -> bool:
        """Whether new blocks were silent before any training."""
        return all(step.preserves_function for step in self.steps)

    @property
    def copies(self) -> bool:
        """Whether every new block was a copy of one of the base's, but for what it writes."""
        if not all(methods.is_method(step.method) for step in self.steps):
            return False
        copied = all(methods.get(step.method).copies for step in self.steps)
        return copied and all(_option(step, "feature_scale") in (None, 1) for step in self.steps)

    @property
    def copies_whole(self) -> bool:
        """Whether every new block was a copy of one of the base's, what it writes included."""
        return self.copies and all(
            _option(step, "output_scale") in (None, 1) for step in self.steps
        )

    @property
    def dtype(self) -> str | None:
        """The dtype that training stored all weights as."""
        return stored_dtype(self.trainings)

    @property
    def elsewhere(self) -> bool:
        """Whether it was trained by other means than ``deepen train``."""
        return any(training.stage == "elsewhere" for training in self.trainings)

    def start_of(self, block: int) -> list[str]:
        """Return the digests that a new block had before its trainings, the earliest first."""
        before = [training.new_blocks_before for training in self.trainings]
        return [digests[block] for digests in before if block in digests]

    def trains(self, block: int) -> bool:
        """Whether a block was trained."""
        return any(block in t.blocks or t.everything for t in self.trainings)


def claim_of(base: Model, grown: Source, trained: bool) -> Claim:
    """Read what happened since a base.

    Args:
        base: The base.
        grown: The grown or trained model.
        trained: Whether it was trained by other means too.

    Raises:
        DeepenError: deepen neither grew nor trained the model.
    """
    lineage = read_entry(grown.config)
    if lineage is None:
        raise DeepenError(
            f"{grown.name!r} has no deepen entry in its config.json; "
            f"there is no claim to verify, because deepen did not grow it."
        )
    past = since(lineage, base.source.fingerprint)
    elsewhere = [trained_elsewhere(lineage, base.source, grown)] if trained else []
    return Claim(past.base, base.depth, past.steps, [*past.trainings, *elsewhere])


def check_lineage(claim: Claim) -> Check:
    """Hold what the lineage says of every growth to what its method and options promise.

    That new blocks are those of the plan is checked wherever a lineage is read, and that the plan
    is true of the weights by comparing them; see ``kept blocks``.
    """
    problems = [
        f"{field} is {given!r}, and {step.method} with its options has {promised!r}"
        for step in claim.steps
        for field, given, promised in _promises(step)
        if given != promised
    ]
    unknown = [step.method for step in claim.steps if not _is_known(step.method)]
    counts = {"growth": len(claim.steps), "training": len(claim.trainings)}
    detail = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
    detail += f"; {', '.join(unknown)} is not installed here, and was not compared" * bool(unknown)
    return check_of("lineage true to its methods", problems, detail)


def _is_known(method: str) -> bool:
    """Whether it can be told what a method promises."""
    return method in _COMBINED or methods.is_method(method)


def _promises(step: Step) -> Iterator[tuple[str, object, object]]:
    """Yield fields that follow from others: name, what a step says, and what it would say."""
    if not _is_known(step.method):
        return
    if step.method in _COMBINED:
        yield "reference", step.reference, "deepen combine"
        yield "trains", step.trains, "new_blocks"
        yield "preserves_function", step.preserves_function, _are_silent(step.options)
        return
    method = methods.get(step.method)
    yield "reference", step.reference, method.reference
    options = _options(step)
    yield "trains", step.trains, method.trained(options)
    yield "preserves_function", step.preserves_function, options.preserves_function


def _options(step: Step) -> Options:
    """Return a step's options, not validated: an earlier version's may be none of this one's."""
    return methods.get(step.method).options.model_construct(**step.options)


def _option(step: Step, name: str) -> Any:  # noqa: ANN401 (whatever the option is)
    """Return one of a step's options; ``None`` if its method has none such."""
    return getattr(_options(step), name, None)


def _are_silent(options: dict[str, Any]) -> bool:
    """Whether the packs of a combined model hold silent blocks only."""
    try:
        return all(
            not pack.get("trainings") and all(step["preserves_function"] for step in pack["steps"])
            for pack in options["packs"]
        )
    except (KeyError, TypeError, AttributeError):
        return False


def check_of(name: str, problems: list[str], detail: str) -> Check:
    """Make a check of a list of problems, naming the first few."""
    if not problems:
        return Check(name=name, passed=True, detail=detail)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return Check(name=name, passed=False, detail="; ".join(problems[:3]) + more)
