"""How far the two fidelities of OpT-DeUS are from what they could be taken for.

``published`` is compared with half of the upper block, which is what an unscaled plan leaves of the
mean; ``normalised`` with the plain mean. Run it on any base that deepen can grow::

    python benchmarks/fidelity.py runs/demo/base
"""

import argparse
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from deepen.base.anatomy import BlockAnatomy
from deepen.base.model import Model, open_model
from deepen.methods.method import Gap
from deepen.methods.opt_deus import METHOD, Options
from deepen.planning.placement import PlacementRequest
from deepen.planning.plan import Insert
from deepen.transport import cost, sinkhorn

ALIGNED = ("query", "key", "value", "gate", "up")
COLUMNS = (
    "published\nfrom B/2",
    "\nmatches",
    "normal.\nfrom mean",
    "\nmatches",
    "\nnorm",
    "mean's\nnorm",
    "best\ncosine",
    "by\nchance",
    "\nrows",
)
LEGEND = (
    "Differences and norms are relative (norms to B's); matches: rows of B that a row of A is "
    "spread over; best cosine: of a row of A with any row of B, and of Gaussian rows by "
    "chance; the FFN norm is compared with A/4 + B/2."
)


@dataclass(frozen=True)
class Measured:
    """One fused tensor; differences are relative, ‖x - y‖ / ‖y‖."""

    published_from_half: float
    """Published fusing against B/2, for the FFN norm A/4 + B/2."""
    published_matches: float
    """Rows of B that a row of A is spread over in the published plan, exp of the mean entropy."""
    normalised_from_mean: float
    """Normalised fusing against (A + B)/2."""
    normalised_matches: float
    """Effective matches of its plan."""
    normalised_norm: float
    """‖W_new‖ / ‖B‖ of normalised fusing."""
    mean_norm: float
    """The same of the plain mean."""
    best_cosine: float
    """Median over A's rows of the largest cosine with a row of B."""
    chance_cosine: float
    """The same of Gaussian matrices of these shapes."""
    rows: float
    """Number of rows n; a uniform plan has n effective matches."""


def relative(x: Tensor, y: Tensor) -> float:
    """Return ‖x - y‖ / ‖y‖."""
    return float((x - y).norm() / y.norm())


def effective_matches(plan: Tensor) -> float:
    """Return exp of the mean entropy of a plan's rows, 1 if sharp and n if uniform."""
    rows = plan.double() / plan.double().sum(1, keepdim=True)
    return float(torch.special.entr(rows).sum(1).mean().exp())


def best_cosine(a: Tensor, b: Tensor) -> float:
    """Return the median over A's rows of the largest cosine with a row of B."""
    return float((normalize(a) @ normalize(b).T).amax(1).median())


def noise(like: Tensor, seed: int) -> Tensor:
    """Return a Gaussian matrix of the same shape."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def plan_of(a: Tensor, b: Tensor, options: Options) -> Tensor:
    """Solve for the plan ``[n, n]`` that the method uses between two weights."""
    distances = cost.euclidean(a, b)
    if options.fidelity == "published":
        return sinkhorn.pot(distances, options.distance_regularisation, options.max_iterations).plan
    distances = cost.in_units_of_spread(distances)
    return sinkhorn.stabilised(distances, options.regularisation, options.max_iterations).plan


def matches(
    below: Mapping[str, Tensor],
    above: Mapping[str, Tensor],
    anatomy: BlockAnatomy,
    options: Options,
) -> dict[str, float]:
    """Return the effective matches of every aligned weight's plan, by the weight's name."""
    weights = {spec.role: n for n, spec in anatomy.block.items() if n.endswith(".weight")}
    output = weights["attention_output"]
    flow = plan_of(below[output].float(), above[output].float(), options)
    if options.fidelity == "normalised":
        flow = flow * len(flow)
    found = {}
    for role in ALIGNED:
        a, b = below[weights[role]].float(), above[weights[role]].float()
        a = a @ flow if role in ("gate", "up") else a
        found[weights[role]] = effective_matches(plan_of(a, b, options))
    return found


def measure(base: Model, below_index: int, above_index: int) -> Iterator[tuple[str, Measured]]:
    """Fuse two blocks both ways; yield role and measurements of every tensor that is aligned."""
    device, anatomy = torch.device("cpu"), base.anatomy.blocks[0]
    below, above = base.block(below_index, device), base.block(above_index, device)
    published, normalised = Options(fidelity="published"), Options(fidelity="normalised")
    gap = Gap(below, above, anatomy, Insert(below_index, above_index, 0.5), anatomy.block)
    half, full = dict(METHOD.fuse(published, gap)), dict(METHOD.fuse(normalised, gap))
    spread = matches(below, above, anatomy, published)
    sharp = matches(below, above, anatomy, normalised)
    for name, spec in anatomy.block.items():
        a, b = below[name].float(), above[name].float()
        if name not in spread and spec.role != "ffn_norm":
            continue
        mean, nan = (a + b) / 2, float("nan")
        yield (
            spec.role,
            Measured(
                relative(half[name], b / 2 if name in spread else a / 4 + b / 2),
                spread.get(name, nan),
                relative(full[name], mean),
                sharp.get(name, nan),
                float(full[name].norm() / b.norm()),
                float(mean.norm() / b.norm()),
                best_cosine(a, b) if name in spread else nan,
                best_cosine(noise(a, 0), noise(b, 1)) if name in spread else nan,
                len(b),
            ),
        )


def measure_gaps(base: Model) -> tuple[dict[str, list[Measured]], Counter[str]]:
    """Measure the gaps that OpT-DeUS grows in.

    Returns:
        Role → one measurement per gap, and what the solvers warned of, counted.
    """
    found: dict[str, list[Measured]] = defaultdict(list)
    inserts = METHOD.place(PlacementRequest(base.depth)).inserts
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", sinkhorn.TransportWarning)
        for insert in track(inserts, "fusing both ways", transient=True):
            for role, measured in measure(base, insert.below, insert.above):
                found[role].append(measured)
    return found, Counter(str(warning.message) for warning in caught)


def table(found: Mapping[str, Sequence[Measured]]) -> Table:
    """Show medians over gaps, one row per tensor."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    shown.add_column("\ntensor", no_wrap=True)
    for column in COLUMNS:
        shown.add_column(column, justify="right", no_wrap=True)
    for role, measured in found.items():
        middle = [
            median(getattr(one, field.name) for one in measured) for field in fields(Measured)
        ]
        shown.add_row(role, *("–" if value != value else f"{value:.3g}" for value in middle))
    return shown


def main() -> None:
    """Print the medians over the gaps that OpT-DeUS grows in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="checkpoint folder or hub id")
    base = open_model(parser.parse_args().base)
    found, warned = measure_gaps(base)
    console, gaps = Console(), len(next(iter(found.values())))
    console.print(f"{base.source.name}: medians over {gaps} gaps, A below and B above")
    console.print(table(found))
    console.print(LEGEND)
    for text, times in warned.items():
        console.print(f"{text} ({times} times)")


if __name__ == "__main__":
    main()
