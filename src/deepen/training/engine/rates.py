"""Learning rates of their own: for output projections, block by block, and phase by phase.

Most methods zero the output projections of new blocks. Until these have moved, everything before
them has no gradient, or one that is mostly noise, and so the recipe can give them a larger learning
rate or let them train alone for some steps. Blocks can have rates that fall from top to bottom.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepen.base.model import Model
from deepen.training.freeze import Trains
from deepen.training.phases.course import course
from deepen.training.phases.phase import Phase
from deepen.training.recipe import TrainingConfig


@dataclass(frozen=True)
class Rate:
    """How a parameter's learning rate differs from the schedule's."""

    factor: float = 1.0
    """What the schedule's rate is multiplied by."""
    waits: bool = False
    """Whether it is 0 while output projections train alone."""
    starts: tuple[int, ...] = ()
    """Phases with whose beginning it starts to train, the first one being 0."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of a run that differ from the schedule's."""

    of: Mapping[str, Rate]
    """Parameter's name in memory → its rate."""
    lead: int = 0
    """Steps in which output projections train alone."""
    phases: Sequence[Phase] = ()
    """The phases of the run, if the recipe has some."""

    def regroup(self, optimizer: torch.optim.Optimizer, module: Any) -> None:  # noqa: ANN401
        """Divide an optimizer's groups so that each holds parameters of one rate.

        Groups whose rate is the schedule's own come first, for theirs is the one that is logged.

        Args:
            optimizer: One that has not taken a step; its groups keep their other settings.
            module: Whose parameters it has.
        """
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            divided: dict[Rate, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                divided.setdefault(self.of[names[id(parameter)]], []).append(parameter)
            groups += [
                {**group, "params": members, "lr": rate.factor * group["lr"]}
                | {"waits": rate.waits, "starts": rate.starts}
                for rate, members in divided.items()
            ]
        first = optimizer.param_groups[0]["lr"]
        # What starts later comes later: a phase's groups are the first ones of the next phase's.
        optimizer.param_groups[:] = sorted(
            groups, key=lambda group: (group["starts"], abs(group["lr"] - first))
        )
        if self.phases:
            optimizer.register_load_state_dict_pre_hook(_with_own_groups)

    def hold(self, scheduler: Any) -> None:  # noqa: ANN401 (a LambdaLR)
        """Let each phase have its own course, and keep at 0 what waits until the lead is over."""
        optimizer = scheduler.optimizer
        for index, group in enumerate(optimizer.param_groups):
            if self.phases:
                peak = scheduler.base_lrs[index]
                scheduler.lr_lambdas[index] = course(self.phases, peak, group["starts"])
            elif group["waits"] and self.lead:
                scheduler.lr_lambdas[index] = self._after_lead(scheduler.lr_lambdas[index])
            group["lr"] = scheduler.base_lrs[index] * scheduler.lr_lambdas[index](0)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def resume(self, optimizer: Any, scheduler: Any) -> None:  # noqa: ANN401 (accelerate's)
        """Complete what a checkpoint held of a run in phases.

        What starts to train with this phase is not in the one of the phase before, and states of
        what no longer trains are not kept: they take memory, and are old when it trains again.

        Args:
            optimizer: One with the states of the checkpoint.
            scheduler: A LambdaLR with the step, and as many rates as the checkpoint had groups.
        """
        for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)
        scheduler.base_lrs = scheduler.base_lrs[:1] * len(scheduler.lr_lambdas)
        for group, base, shape in zip(
            optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * shape(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _after_lead(self, course: Callable[[int], float]) -> Callable[[int], float]:
        """Return a schedule that is 0 in the lead and as it was from then on."""
        return lambda step: 0.0 if step < self.lead else course(step)


def _with_own_groups(optimizer: torch.optim.Optimizer, held: dict[str, Any]) -> dict[str, Any]:
    """Add to what a checkpoint held the groups that it lacks: those of what starts to train."""
    groups, own = held["param_groups"], optimizer.state_dict()["param_groups"]
    return held | {"param_groups": [*groups, *own[len(groups) :]]}


def phased_rates(model: Model, phases: Sequence[Phase]) -> Rates:
    """Work out the rates of a run in phases.

    Args:
        model: The checkpoint that is trained.
        phases: The phases, of a resolved recipe.
    """
    of = {}
    for name in model.in_memory.shapes:
        trains = [False, *(phase.trains.includes(model.anatomy.table, name) for phase in phases)]
        turns = enumerate(itertools.pairwise(trains))
        of[name] = Rate(starts=tuple(n for n, (before, now) in turns if now and not before))
    return Rates(of, phases=phases)


def own_rates(model: Model, trains: Trains, training: TrainingConfig, steps: int) -> Rates | None:
    """Work out the rates that a recipe asks for; ``None`` if all are the schedule's.

    Args:
        model: The checkpoint that is trained.
        trains: What trains.
        training: The recipe's part.
        steps: Optimizer steps.
    """
    factor, lead, decay = (
        training.output_rate_factor,
        training.output_lead,
        training.block_rate_decay,
    )
    if (factor, lead, decay) == (1, 0, 1):
        return None
    lead = round(lead * steps if lead < 1 else lead)
    memory = model.in_memory
    family, blocks = memory.anatomy.family, memory.anatomy.blocks
    from_top = {block: i for i, block in enumerate(sorted(trains.blocks, reverse=True))}
    of = {}
    for name in memory.shapes:
        place = family.split(name)
        if place is None:
            above = family.part(name) in ("norm", "head")
            of[name] = Rate(1.0 if above else decay ** len(from_top), waits=True)
        elif place[0] in from_top:
            output = any(part.writes_residual for part in blocks[place[0]].stored[place[1]].parts)
            own = decay ** from_top[place[0]] * (factor if output else 1.0)
            of[name] = Rate(own, waits=not output)
    return Rates(of, lead)
