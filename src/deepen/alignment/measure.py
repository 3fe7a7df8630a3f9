"""How well neighbouring blocks align, and what growing made of it, in numbers.

Blocks are matched as ``fidelity: structured`` matches them. Beside every similarity stands what
chance gives: the same match against an upper block whose residual dimensions were shuffled, which
leaves all norms and all relations inside the block as they are, and none between the two.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from deepen.alignment.activations import Likeness, compare_blocks, read_tokens
from deepen.alignment.match import Matcher, Pair, match_pairs
from deepen.alignment.proof import relative_changes
from deepen.base.anatomy import Block, BlockAnatomy, Role
from deepen.base.model import Model, open_model
from deepen.common import device as devices
from deepen.common.progress import Progress, silent
from deepen.planning.parents import with_parents
from deepen.planning.plan import Insert, Keep, Plan, insert_after
from deepen.records.alignment import AlignmentRecord, BlockAlignment, PartAlignment
from deepen.records.growth import read_lineage
from deepen.transport.neurons import NeuronMatch
from deepen.transport.quality import (
    MatchQuality,
    head_quality,
    heat_map,
    neuron_quality,
    norm_ratio,
)
from deepen.transport.sinkhorn import TransportWarning

REGULARISATION = 0.06
"""Entropic regularisation of the plans that are shown, in units of the cost's spread."""
_HIDDEN: tuple[Role, ...] = ("query", "key", "value", "gate", "up")


def align(
    model: str | Path,
    *,
    revision: str | None = None,
    calibration: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> AlignmentRecord:
    """Measure how well a model's neighbouring blocks align.

    In a grown model these are the parents of each block that the latest growth added, which it
    still holds; in any other all neighbours.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        calibration: Text to compare what blocks compute on; without it only weights are compared.
        device: Where to compute.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The checkpoint or the text cannot be used.
    """
    return align_model(open_model(model, revision), calibration, devices.choose(device), progress)


def align_model(
    model: Model, calibration: Path | None, device: torch.device, progress: Progress = silent
) -> AlignmentRecord:
    """Measure how well an opened model's neighbouring blocks align; see ``align``.

    Raises:
        DeepenError: The text cannot be used, or transformers cannot run the model.
    """
    lineage = read_lineage(model.source.config)
    steps = lineage.steps if lineage else []
    inserts = dict(_new_blocks(Plan.from_json(steps[-1].plan)) if steps else _gaps(model))
    pairs = [(insert.below, insert.above) for insert in inserts.values()]
    likeness: Mapping[Pair, Likeness] = {}
    if calibration:
        tokens = read_tokens(model, calibration)
        likeness = compare_blocks(model, pairs, tokens, device, progress)
    matchers = match_pairs(model, pairs, device)
    changes = relative_changes(model, matchers, device, progress)
    blocks = []
    for done, (key, insert) in enumerate(inserts.items()):
        progress("aligning", done / len(inserts))
        pair = insert.below, insert.above
        new = model.block(key, device) if lineage else None
        measured = _measure(matchers[pair], new)
        blocks.append(
            BlockAlignment(
                below=insert.below,
                above=insert.above,
                block=key if lineage else None,
                cka=likeness[pair].cka if pair in likeness else None,
                function_change=changes[pair],
                **measured,
            )
        )
    progress("aligned", 1.0)
    return AlignmentRecord(
        model=model.source.name,
        method=steps[-1].method if steps else None,
        calibration=calibration.name if calibration else None,
        regularisation=REGULARISATION,
        blocks=blocks,
    )


def gap_scores(model: Model, device: torch.device, progress: Progress = silent) -> list[float]:
    """Score every gap by how well the two blocks that would be fused there align.

    Returns:
        For each inner gap the mean over heads and neurons of matched similarity.
    """
    scores, gaps = [], list(_gaps(model))
    for done, (_, insert) in enumerate(gaps):
        progress("scoring gaps", done / len(gaps))
        pair = insert.below, insert.above
        qualities = _qualities(match_pairs(model, [pair], device)[pair])
        similarities = [quality.similarity_after for _, quality in qualities]
        scores.append(fmean(similarities) if similarities else 0.0)
    progress("scored gaps", 1.0)
    return scores


def _gaps(model: Model) -> Iterator[tuple[int, Insert]]:
    """Yield every inner gap and the two blocks that are fused there."""
    for gap in range(model.depth - 1):
        plan = insert_after(model.depth, [gap], copies=False)
        yield gap, with_parents(plan, model.anatomy, model.resolved).inserts[0]


def _new_blocks(plan: Plan) -> Iterator[tuple[int, Insert]]:
    """Yield every new block and its parents, all as indices of the grown model."""
    kept = {block.source: i for i, block in enumerate(plan.blocks) if isinstance(block, Keep)}
    for index, block in enumerate(plan.blocks):
        if isinstance(block, Insert) and block.below != block.above:
            yield index, Insert(kept[block.below], kept[block.above], block.t)


def _measure(matcher: Matcher, new: Block | None) -> dict[str, Any]:
    """Measure how well two blocks align, and what a new block has of the upper one's norms.

    Returns:
        Fields of ``BlockAlignment``.
    """
    below, above, anatomy = matcher.below, matcher.above, matcher.anatomy
    chance = dict(_qualities(Matcher(below, _Shuffled(above, anatomy), anatomy)))
    plan = _plan(Matcher(below, above, anatomy, reg=REGULARISATION))
    spread = neuron_quality(plan) if plan else None
    ratios = {}
    if new is not None:
        unit = anatomy.units[0] if anatomy.units else ""
        names = {role: anatomy.name(role) or anatomy.name(role, unit) for role in _HIDDEN}
        ratios = {r: norm_ratio(new[n].float(), above[n].float()) for r, n in names.items() if n}
    return {
        "parts": [
            PartAlignment(
                part=part,
                units=quality.units,
                similarity_before=quality.similarity_before,
                similarity_after=quality.similarity_after,
                similarity_by_chance=chance[part].similarity_after,
                in_place=quality.diagonal_mass,
            )
            for part, quality in _qualities(matcher)
        ],
        "effective_matches": spread.effective_matches if spread else None,
        "diagonal_mass": spread.diagonal_mass if spread else None,
        "norm_ratios": ratios,
        "heat_map": heat_map(plan.plan) if plan and plan.plan is not None else [],
    }


def _qualities(matcher: Matcher) -> Iterator[tuple[str, MatchQuality]]:
    """Yield the quality of heads and neurons; experts are averaged."""
    if heads := matcher.heads:
        yield "heads", head_quality(heads)
    for unit in matcher.anatomy.units:
        if not unit.isdigit() and (match := matcher.neurons(unit)):
            yield f"{unit} neurons".strip(), neuron_quality(match)
    matches = (matcher.neurons(unit) for unit in matcher.anatomy.experts)
    if found := [neuron_quality(match) for match in matches if match]:
        yield "expert neurons", _mean(found)


def _mean(found: Sequence[MatchQuality]) -> MatchQuality:
    """Average over experts; units are added up."""
    means: dict[str, Any] = {
        entry.name: fmean(getattr(quality, entry.name) for quality in found)
        for entry in fields(MatchQuality)
    }
    return MatchQuality(**means | {"units": sum(quality.units for quality in found)})


def _plan(matcher: Matcher) -> NeuronMatch | None:
    """Return the entropic match of the first FFN's neurons, for a picture, however it converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TransportWarning)
        return matcher.neurons(matcher.anatomy.units[0]) if matcher.anatomy.units else None


class _Shuffled(Mapping[str, Tensor]):
    """A block whose residual dimensions stand in an order that has nothing to do with others'."""

    def __init__(self, block: Block, anatomy: BlockAnatomy) -> None:
        self._block, self._anatomy = block, anatomy

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._block[name]
        for axis, label in enumerate(self._anatomy.block[name].axes):
            if label == "residual":
                generator = torch.Generator().manual_seed(0)
                order = torch.randperm(tensor.shape[axis], generator=generator)
                tensor = tensor.index_select(axis, order.to(tensor.device))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._block)

    def __len__(self) -> int:
        return len(self._block)
