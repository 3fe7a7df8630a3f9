"""LESA, learnable layer scaling-up. arXiv 2502.13794, section 3.

For each kind of weight, the W of all L blocks are concatenated along their input axis and factored,
[W_1 … W_L] = U S [V_1 … V_L]. A small MLP, trained on the base's own triplets, learns row by row to
predict V_i from V_{i-1} and V_{i+1}; given the V of two neighbours it predicts that of a block
between them, and W_new = U S V_new. The function changes.

Differs from the published code in: the factors come from the eigenvectors of the out × out Gram
matrix in float64, which gives the same U and S without the [out, L·in] matrix; training is seeded;
biases, which it does not know, are the mean of the neighbours'. As there, RMSNorm gains are those
of block 0 (``norms=mean`` changes that). λ is 5e-4 in the code and 5e-5 in the paper, epochs are 10
and 5; the defaults are the code's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from deepen.base.anatomy import Block, BlockAnatomy
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.methods.mean import interpolate, with_mean_norms
from deepen.methods.method import Gap, Method, Prepared, Stack, between
from deepen.methods.options import LARGEST, FusedOptions
from deepen.planning.placement import PlacementRequest
from deepen.planning.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Options(FusedOptions):
    """Options of LESA."""

    output_scale: float = Field(default=1.0, ge=0, le=LARGEST)
    """What is kept of the output projections: `1` is the paper's, `0` keeps the base's function."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    """Passes over the training rows of one kind of weight."""
    batch_size: int = Field(default=64, ge=1, le=2**20)
    """Rows in one training step."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Learning rate of AdamW."""
    hidden: int = Field(default=256, ge=1, le=2**14)
    """Width of the MLP's two hidden layers."""
    norm_weight: float = Field(default=5e-4, ge=0, le=1)
    """λ: weight of the squared difference of norms in the loss, beside the mean squared error."""
    norms: Literal["first", "mean"] = "first"
    """RMSNorm gains of a new block: those of block 0 (published) or the neighbours' mean."""


@dataclass(frozen=True)
class Predictor:
    """What maps the weights of two neighbours to a new weight, for one kind of weight."""

    basis: Tensor
    """U S, ``[out, r]``."""
    inverse: Tensor
    """S⁻¹Uᵀ, ``[r, out]``: V_i = S⁻¹Uᵀ W_i."""
    network: nn.Module
    """``[r, 2·in]`` → ``[r, in]``."""

    def __call__(self, below: Tensor, above: Tensor) -> Tensor:
        """Predict the weight ``[out, in]`` of a block between two neighbours."""
        import torch

        rows = torch.cat([self.inverse @ below.float(), self.inverse @ above.float()], dim=1)
        with torch.no_grad():
            return self.basis @ self.network(rows)


@dataclass(frozen=True)
class State:
    """What ``prepare`` learned from the whole stack."""

    predictors: dict[str, Predictor]
    """Weight name → its predictor."""
    first: dict[str, Tensor]
    """RMSNorm gains of block 0."""


def place(request: PlacementRequest) -> Plan:
    """Place as OpT-DeUS does, one block per gap.

    Raises:
        DeepenError: The base is too shallow to learn from, or a gap would take several blocks.
    """
    if request.depth < 3:
        raise DeepenError(
            f"LESA learns from triplets of blocks; a base of {request.depth} blocks has none."
        )
    plan = between("top")(request)
    if any(block.t != 0.5 for block in plan.inserts):
        raise DeepenError("LESA predicts one block per gap; leave out the second one.")
    return plan


def prepare(options: Options, stack: Stack) -> Prepared:
    """Factor each kind of weight over the stack and train its predictor.

    Raises:
        DeepenError: The blocks are not all alike, or have experts.
    """
    anatomy = stack.model.anatomy
    if not anatomy.is_uniform:
        raise DeepenError(
            "LESA learns each weight from the same weight of every block, and this base's blocks "
            "are of several kinds; choose another method."
        )
    if anatomy.blocks[0].experts or anatomy.blocks[0].name("router"):
        raise DeepenError(
            "LESA learns each weight from the same weight of every block, and experts have no "
            "order across blocks; choose another method."
        )
    blocks = [stack.model.block(index, stack.device, fused=True) for index in range(anatomy.depth)]
    return Prepared(learn(options, blocks, anatomy.blocks[0], stack.seed, stack.progress))


def learn(
    options: Options, blocks: Sequence[Block], anatomy: BlockAnatomy, seed: int, progress: Progress
) -> State:
    """Factor each kind of weight over the stack and train its predictor."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    names = [name for name, spec in anatomy.block.items() if spec.is_weight]
    predictors = {}
    for done, name in enumerate(names):
        progress(f"lesa: learning {name}", done / len(names))
        basis, inverse = factor(block[name] for block in blocks)
        rows = torch.stack([inverse @ block[name].float() for block in blocks])
        predictors[name] = Predictor(basis, inverse, train(rows, options, generator))
    progress("lesa: learned", 1.0)
    norms = [name for name, spec in anatomy.block.items() if spec.role.endswith("_norm")]
    return State(predictors, {name: blocks[0][name] for name in norms})


def factor(weights: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return U S ``[out, out]`` and S⁻¹Uᵀ of the weights ``[out, in]`` joined along their inputs.

    Directions that the weights do not use (S below float32's precision) are left out of S⁻¹.
    """
    import torch

    gram = reduce(torch.add, (weight.double() @ weight.double().T for weight in weights))
    eigenvalues, u = torch.linalg.eigh(gram)
    s = eigenvalues.clamp_min(0).sqrt()
    used = s > s.max() * torch.finfo(torch.float32).eps
    inverse = torch.where(used, 1 / s, 0)
    return (u * s).float(), (inverse[:, None] * u.T).float()


def train(rows: Tensor, options: Options, generator: torch.Generator) -> nn.Module:
    """Train the MLP on all triplets of neighbours.

    Args:
        rows: The V of all blocks, ``[L, r, in]``.
        options: Sizes and rates.
        generator: Source of the initial weights and of the order of the rows.

    Returns:
        The trained network.
    """
    import torch

    width = rows.shape[2]
    inputs = torch.cat([rows[:-2], rows[2:]], dim=2).flatten(0, 1)
    targets = rows[1:-1].flatten(0, 1)
    network = _network(width, options.hidden, generator).to(rows.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate)
    for _ in range(options.epochs):
        order = torch.randperm(len(inputs), generator=generator).to(rows.device)
        for batch in order.split(options.batch_size):
            optimizer.zero_grad()
            _loss(network(inputs[batch]), targets[batch], options.norm_weight).backward()
            optimizer.step()
    return network.requires_grad_(False)


def _network(width: int, hidden: int, generator: torch.Generator) -> nn.Module:
    """Build the 3-layer ReLU MLP with initial weights drawn from the generator."""
    import torch
    from torch import nn

    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(2 * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )


def _loss(predicted: Tensor, target: Tensor, norm_weight: float) -> Tensor:
    """Return (1-λ)·MSE + λ·(‖predicted‖ - ‖target‖)², the norms taken over the whole batch."""
    from torch import nn

    difference = nn.functional.mse_loss(predicted, target)
    norms = (predicted.norm() - target.norm()).square()
    return (1 - norm_weight) * difference + norm_weight * norms


def fuse(options: Options, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Predict the weights; take the rest from block 0 or from the neighbours' mean."""
    for name, spec in gap.tensors.items():
        if name in gap.state.first and options.norms == "first":
            yield name, gap.state.first[name]
            continue
        below, above = gap.below[name], gap.above[name]
        if name in gap.state.predictors:
            fused = gap.state.predictors[name](below, above)
            yield name, with_mean_norms(options, spec, fused, below, above, gap.t)
        else:
            yield name, interpolate(below, above, gap.t)


METHOD = Method(
    name="lesa",
    summary="predicted by an MLP trained on the base's own weights",
    reference="arXiv:2502.13794",
    place=place,
    fuse=fuse,
    options=Options,
    prepare=prepare,
)
