"""Learning rates of their own: for output projections, and block by block.

Most methods zero the output projections of new blocks. Until these have moved, everything before
them has no gradient, or one that is mostly noise, and so the recipe can give them a larger learning
rate or let them train alone for some steps. Blocks can have rates that fall from top to bottom.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepen.base.model import Model
from deepen.training.freeze import Trains
from deepen.training.recipe import TrainingConfig


@dataclass(frozen=True)
class Rate:
    """How a parameter's learning rate differs from the schedule's."""

    factor: float = 1.0
    """What the schedule's rate is multiplied by."""
    waits: bool = False
    """Whether it is 0 while output projections train alone."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of a run that differ from the schedule's."""

    of: Mapping[str, Rate]
    """Parameter's name in memory → its rate."""
    lead: int
    """Steps in which output projections train alone."""

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
                {**group, "params": members, "lr": rate.factor * group["lr"], "waits": rate.waits}
                for rate, members in divided.items()
            ]
        first = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[:] = sorted(groups, key=lambda group: abs(group["lr"] - first))

    def hold(self, scheduler: Any) -> None:  # noqa: ANN401 (a LambdaLR)
        """Keep the groups that wait at a learning rate of 0 until the lead is over."""
        optimizer = scheduler.optimizer
        for index, group in enumerate(optimizer.param_groups):
            if group["waits"] and self.lead:
                scheduler.lr_lambdas[index] = self._after_lead(scheduler.lr_lambdas[index])
                group["lr"] = scheduler.base_lrs[index] * scheduler.lr_lambdas[index](0)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _after_lead(self, course: Callable[[int], float]) -> Callable[[int], float]:
        """Return a schedule that is 0 in the lead and as it was from then on."""
        return lambda step: 0.0 if step < self.lead else course(step)


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
