"""How well the parents of new blocks align: transport plans as pictures, and tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from deepen.comparison import statistics as aggregate
from deepen.records.alignment import BlockAlignment, PartAlignment
from deepen.records.study import ArmRecord
from deepen.report import text
from deepen.report.tables import Cell, Table

LEVELS = (
    (0.5, "below ½"),
    (2.0, "½ to 2: as the uniform plan"),
    (4.0, "2 to 4"),
    (8.0, "4 to 8"),
    (16.0, "8 to 16"),
    (32.0, "16 to 32"),
    (math.inf, "above 32"),
)
"""Shades of a heat map: where each ends, in units of the uniform plan's mass, and its name."""

_HEADER = [
    *("blocks of the base: part", "new block", "units", "same index", "matched", "by chance"),
    *("in place", "moved", "effective matches", "CKA"),
]


@dataclass(frozen=True)
class HeatMap:
    """One transport plan, drawn as a path for each shade on a canvas of a unit a cell."""

    title: str
    """The two blocks."""
    new: str
    """The new blocks between them."""
    rows: int
    """Neurons of the lower block, shrunk."""
    columns: int
    """Neurons of the upper block, shrunk."""
    paths: list[tuple[int, str]]
    """Shade, and the cells that have it, as an SVG path."""


@dataclass(frozen=True)
class Parents:
    """New blocks that several arms make from the same parents."""

    arms: list[tuple[int, str]]
    """Index and label of those arms."""
    maps: list[HeatMap]
    """One for each pair of parents with an FFN, as the first of the arms found it."""
    table: Table
    """One row for each pair and part, as the first of the arms found it."""


@dataclass(frozen=True)
class Alignment:
    """What the section on alignment shows."""

    parents: list[Parents]
    """One entry for each set of parents."""
    norm_ratios: Table
    """How large new hidden weights are, arm by arm; rows carry the arm's index in ``arms``."""
    arms: list[int]
    """Index of the arm of each row."""
    regularisation: str
    """Of the transport plans."""
    calibration: str | None
    """The text of CKA."""
    levels: list[str]
    """Names of the shades."""


def alignment(records: Sequence[ArmRecord], arms: Sequence[str]) -> Alignment | None:
    """Gather what was measured of alignment; ``None`` if nothing was.

    Args:
        records: Lines of records.jsonl.
        arms: Labels in order.
    """
    measured = [r for r in records if r.grow and r.alignment and r.alignment.blocks]
    fusing = [arm for arm in arms if any(record.arm == arm for record in measured)]
    if not fusing:
        return None
    first = {arm: aggregate.of_arm(measured, arm)[0] for arm in fusing}
    sets: dict[tuple[object, ...], list[str]] = {}
    for arm, record in first.items():
        sets.setdefault(tuple(_pairs(record)), []).append(arm)
    shown = first[fusing[0]].alignment
    assert shown is not None
    return Alignment(
        parents=[_parents(first[same[0]], same, arms) for same in sets.values()],
        norm_ratios=_norm_ratios({arm: aggregate.of_arm(measured, arm) for arm in fusing}),
        arms=[arms.index(arm) for arm in fusing],
        regularisation=f"{shown.regularisation:g}",
        calibration=shown.calibration,
        levels=[name for _, name in LEVELS],
    )


def _pairs(record: ArmRecord) -> list[tuple[int, int, int]]:
    """Return each new block's index after its two parents, which are blocks of the base."""
    assert record.grow is not None
    assert record.alignment is not None
    pairs = []
    for new in [block.block for block in record.alignment.blocks]:
        plan = record.grow.step.plan
        entry = plan[new] if new is not None and 0 <= new < len(plan) else None
        if new is not None and isinstance(entry, list):
            pairs.append((int(entry[0]), int(entry[1]), new))
    return pairs


def _parents(record: ArmRecord, same: Sequence[str], arms: Sequence[str]) -> Parents:
    """Show every pair of parents once, whatever the number of new blocks between them."""
    assert record.alignment is not None
    blocks = {block.block: block for block in record.alignment.blocks}
    maps, rows = [], []
    for (below, above), group in groupby(_pairs(record), key=lambda pair: pair[:2]):
        new = [index for _, _, index in group]
        title, block = f"{below} and {above}", blocks[new[0]]
        if block.heat_map:
            maps.append(_heat_map(block.heat_map, title, new))
        rows += _rows(block, title, new)
    return Parents(
        arms=[(arms.index(arm), arm) for arm in same],
        maps=maps,
        table=Table(f"Parents of the new blocks of {', '.join(same)}", _HEADER, rows),
    )


def _heat_map(cells: Sequence[Sequence[float]], title: str, new: list[int]) -> HeatMap:
    """Draw a transport plan, runs of cells of one shade as one rectangle."""
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(cells):
        x = 0
        for shade, run in groupby(row, key=_shade):
            width = len(list(run))
            paths.setdefault(shade, []).append(f"M{x} {y}h{width}v1h-{width}z")
            x += width
    return HeatMap(
        title=title,
        new=f"new: {text.blocks(new)}",
        rows=len(cells),
        columns=len(cells[0]),
        paths=[(shade, "".join(paths[shade])) for shade in sorted(paths)],
    )


def _shade(mass: float) -> int:
    """Return the index of a mass's shade."""
    return next(i for i, (end, _) in enumerate(LEVELS) if mass < end or end == math.inf)


def _rows(block: BlockAlignment, title: str, new: list[int]) -> list[tuple[str, list[Cell]]]:
    """Write one pair: its own numbers in the first row, the transport plan's with its neurons."""
    neurons = next((p for p in block.parts if p.part.startswith("neurons")), None)
    rows, moved = [], block.function_change
    for part in block.parts:
        spread = block.effective_matches if part is neurons else None
        whole = part is block.parts[0]
        rows.append(
            (
                f"{title}: {part.part}",
                [
                    Cell(text.blocks(new) if whole else ""),
                    *_part(part),
                    Cell(text.scientific(moved) if whole and moved is not None else ""),
                    Cell("" if spread is None else text.fixed(spread, 1)),
                    Cell(text.fixed(block.cka, 2) if whole and block.cka is not None else ""),
                ],
            )
        )
    return rows


def _part(part: PartAlignment) -> list[Cell]:
    """Write how well one part was matched."""
    return [
        Cell(str(part.units)),
        Cell(text.fixed(part.similarity_before, 3)),
        Cell(text.fixed(part.similarity_after, 3)),
        Cell(text.fixed(part.similarity_by_chance, 3)),
        Cell(text.share(part.in_place)),
    ]


def _norm_ratios(records: Mapping[str, Sequence[ArmRecord]]) -> Table:
    """Write every arm's norm ratios, role by role."""
    of_arms = {arm: aggregate.norm_ratios(of_arm) for arm, of_arm in records.items()}
    roles = list(dict.fromkeys(role for ratios in of_arms.values() for role in ratios))
    rows = [
        (arm, [Cell(text.fixed(ratios[r], 2) if r in ratios else "–") for r in roles])
        for arm, ratios in of_arms.items()
    ]
    header = ["arm", *(role.replace("_", " ") for role in roles)]
    return Table(
        "Norms of new blocks’ hidden weights, as a share of the upper parent’s", header, rows
    )
