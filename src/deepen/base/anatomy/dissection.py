"""Match a checkpoint's tensors against its family's table."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from deepen.base.anatomy.family import Config, Family, Heads
from deepen.base.anatomy.tensors import Place, StoredSpec, Table, TensorSpec
from deepen.base.anatomy.towers import as_stored
from deepen.base.anatomy.vocabulary import Axis, Role
from deepen.common.errors import DeepenError

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name → shape."""


@dataclass(frozen=True)
class BlockAnatomy:
    """What one block is made of."""

    kind: str
    """Which of the family's kinds of block it is."""
    stored: Mapping[str, StoredSpec]
    """Name of a stored tensor inside the block → how it is stored."""
    block: Mapping[str, TensorSpec]
    """Name of a logical tensor → what it is: what methods see. A stored tensor that is one logical
    tensor keeps its name; parts are named ``stored:role`` and ``stored[expert]:role``."""
    places: Mapping[str, Place]
    """Name of a logical tensor → where it stands."""
    sizes: dict[Axis, int]
    """Axis label → size, as far as the config tells."""
    heads: Heads | None
    """What its attention heads are like."""
    norm_offset: float
    """What a norm adds to its weight."""
    bilinear: bool
    """Whether a gated FFN is linear in its up projection."""

    @cached_property
    def names(self) -> dict[tuple[Role, str, bool], str]:
        """``TensorSpec.key`` → name of the logical tensor."""
        return {spec.key: name for name, spec in self.block.items()}

    @cached_property
    def units(self) -> tuple[str, ...]:
        """The FFNs that it has: ``""`` where there is one, experts by number, ``shared``."""
        return tuple(dict.fromkeys(s.unit for s in self.block.values() if s.role == "ffn_output"))

    @property
    def experts(self) -> tuple[str, ...]:
        """The numbers of its experts."""
        return tuple(unit for unit in self.units if unit.isdigit())

    def name(self, role: Role, unit: str = "", *, bias: bool = False) -> str | None:
        """Return the name of a logical tensor by what it is; ``None`` if there is none."""
        return self.names.get((role, unit, bias))


@dataclass(frozen=True)
class Anatomy:
    """A family's table matched with one checkpoint."""

    table: Family
    """The family's table, with the names of transformers' own model."""
    family: Family
    """The same with the names that this checkpoint uses."""
    blocks: tuple[BlockAnatomy, ...]
    """What each block is made of."""
    types: tuple[tuple[object, ...], ...]
    """What else tells blocks apart: their entries in the config's per-layer lists."""
    outside: tuple[str, ...]
    """Names of the tensors outside all blocks: embeddings first, then the norm and the head."""
    trailing: Mapping[str, tuple[int, str]]
    """Multi-token-prediction tensors → (how many blocks after the last one, name inside it)."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Tensors in memory that are not the text model's → what the checkpoint calls them."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def block(self) -> Mapping[str, TensorSpec]:
        """What the first block is made of."""
        return self.blocks[0].block

    @property
    def is_uniform(self) -> bool:
        """Whether all blocks have the same tensors."""
        return all(block is self.blocks[0] for block in self.blocks)


def dissect(table: Family, config: Config, shapes: Shapes, stored: Shapes | None = None) -> Anatomy:
    """Match a checkpoint's tensors against a family's table.

    Args:
        table: The table.
        config: The checkpoint's config with the family's defaults filled in.
        shapes: Tensor name → shape, for every tensor of the checkpoint.
        stored: The same of a checkpoint whose model this is in memory, if it is one.

    Raises:
        DeepenError: A tensor is unknown or missing, or the sizes along an axis label disagree.
    """
    family = _as_named(table, shapes)
    depth = int(config[family.depth_field])
    suffixes, outside, trailing = _sort(family, config, depth, shapes)
    kinds: dict[frozenset[str], BlockAnatomy] = {}
    heads = family.heads(config)
    shares = family.sizes(config, shapes if stored is None else stored) if family.sizes else {}
    sizes = {**(heads.sizes if heads else {}), **shares}
    for index, present in enumerate(suffixes):
        if frozenset(present) not in kinds:
            block = _block(family, index, present, shapes, heads)
            kinds[frozenset(present)] = replace(block, sizes=sizes)
    if len(family.kinds) == 1 and len(kinds) > 1:
        _name_missing(family, suffixes)
    blocks = tuple(kinds[frozenset(present)] for present in suffixes)
    blocks = _by_size(family, blocks, shapes)
    explicit = family.explicit(config) if family.explicit else {}
    fields = map({**config, **explicit}.get, family.per_layer_lists)
    # Some may also be one number for all blocks.
    lists = [entries for entries in fields if isinstance(entries, list | tuple | str)]
    types = tuple(
        tuple(entries[i] for entries in lists if len(entries) == depth) for i in range(depth)
    )
    return Anatomy(table, family, blocks, types, tuple(outside), trailing)


def with_scales(anatomy: Anatomy, scales: Mapping[str, str]) -> Anatomy:
    """Add what lies beside quantised weights to where these are.

    Args:
        anatomy: Of the weights alone.
        scales: Name of such a tensor → the weight.

    Raises:
        DeepenError: A weight outside all blocks is quantised.
    """
    if not scales:
        return anatomy
    found: dict[int, dict[str, StoredSpec]] = {}
    outside, trailing = list(anatomy.outside), dict(anatomy.trailing)
    for name, weight in scales.items():
        place = anatomy.family.split(name)
        if place and place[0] < anatomy.depth:
            spec = StoredSpec((TensorSpec("scale", ()),))
            found.setdefault(place[0], {})[place[1]] = spec
        elif place:
            trailing[name] = (place[0] - anatomy.depth, place[1])
        elif name.startswith(anatomy.family.carried):
            outside.append(name)
        else:
            raise DeepenError(
                f"Tensor {weight!r} is quantised and belongs to no block, and deepen reads "
                f"quantised weights in blocks alone; give the unquantised checkpoint."
            )
    alike: dict[tuple[int, frozenset[str]], BlockAnatomy] = {}
    blocks = []
    for index, block in enumerate(anatomy.blocks):
        beside = found.get(index, {})
        whole = replace(block, stored={**block.stored, **beside})
        blocks.append(alike.setdefault((id(block), frozenset(beside)), whole))
    return replace(anatomy, blocks=tuple(blocks), outside=tuple(outside), trailing=trailing)


def _as_named(family: Family, shapes: Collection[str]) -> Family:
    """Return the table with the names of this checkpoint, which may lack the model's prefix."""
    if family.tower:
        return as_stored(family, family.tower, shapes)
    block_prefix = family.stored_as.get(family.block_prefix, family.block_prefix)
    if not any(name.startswith(block_prefix) for name in shapes):
        block_prefix = family.block_prefix
    prefix = block_prefix.split(".")[0] + "."
    has_prefix = any(name.startswith(prefix) for name in shapes)
    if has_prefix or prefix == block_prefix:
        prefix = ""

    def named(name: str) -> str:
        stored = family.stored_as.get(name, name)
        return (stored if stored in shapes else name).removeprefix(prefix)

    return replace(
        family,
        block_prefix=block_prefix.removeprefix(prefix),
        embeddings=named(family.embeddings),
        outside=tuple(map(named, family.outside)),
        final_norm=tuple(map(named, family.final_norm)),
        optional_outside=tuple(map(named, family.optional_outside)),
        head=named(family.head),
    )


def _sort(
    family: Family, config: Config, depth: int, shapes: Iterable[str]
) -> tuple[list[set[str]], list[str], dict[str, tuple[int, str]]]:
    """Sort tensor names into blocks, what is outside them, and what stands after the last."""
    after = int(config.get(family.trailing_field) or 0) if family.trailing_field else 0
    suffixes: list[set[str]] = [set() for _ in range(depth)]
    around = family.around
    required = (family.embeddings, *family.outside, *family.final_norm)
    outside, carried, trailing = set(), [], {}
    for name in shapes:
        place = family.split(name)
        if place is None and name in around:
            outside.add(name)
        elif family.is_beside(name):
            carried.append(name)
        elif place is None:
            raise _unknown(family, name)
        elif depth <= place[0] < depth + after:
            trailing[name] = (place[0] - depth, place[1])
        elif place[0] >= depth:
            raise DeepenError(
                f"Tensor {name!r} belongs to block {place[0]}, but config.json counts "
                f"{depth} blocks ({family.depth_field}); correct the checkpoint."
            )
        elif not any(_stored(table, place[1]) for table in family.kinds.values()):
            raise _unknown(family, name)
        else:
            suffixes[place[0]].add(place[1])
    for name in required:
        if name not in outside:
            raise DeepenError(f"The checkpoint lacks tensor {name!r}; fetch or export it again.")
    return suffixes, [*(name for name in around if name in outside), *carried], trailing


def _unknown(family: Family, name: str) -> DeepenError:
    """Say that no table knows a tensor."""
    return DeepenError(
        f"Tensor {name!r} is not part of a {family.model_type!r} model as deepen knows it; "
        f"growing would have to guess what it does."
    )


def _stored(table: Table, suffix: str) -> tuple[str, StoredSpec, str] | None:
    """Find a tensor in a table; returns its entry and the expert's number, if it has one."""
    if suffix in table:
        return suffix, table[suffix], ""
    for match in re.finditer(r"(?<=\.)\d+(?=\.)", suffix):
        pattern = f"{suffix[: match.start()]}*{suffix[match.end() :]}"
        if pattern in table:
            return pattern, table[pattern], match[0]
    return None


def _block(
    family: Family, index: int, present: set[str], shapes: Shapes, heads: Heads | None
) -> BlockAnatomy:
    """Find the kind of a block and list its tensors in the order of the table.

    Raises:
        DeepenError: A tensor is missing.
    """
    kind, missing = _kind(family, present)
    if missing:
        raise _missing(family, index, missing)
    table = family.kinds[kind]
    order = {pattern: position for position, pattern in enumerate(table)}

    def position(suffix: str) -> tuple[int, int]:
        entry = _stored(table, suffix)
        assert entry is not None
        return int(entry[2] or 0), order[entry[0]]

    stored, block, places = {}, {}, {}
    for suffix in sorted(present, key=position):
        entry = _stored(table, suffix)
        assert entry is not None
        _, spec, number = entry
        stored[suffix] = spec
        if spec.is_buffer:
            continue
        experts = range(shapes[family.name(index, suffix)][0]) if spec.bank else [None]
        for expert in experts:
            for part, logical in enumerate(spec.parts):
                name = suffix
                if expert is not None:
                    name += f"[{expert}]"
                if spec.split:
                    name += f":{logical.role}"
                unit = str(expert) if expert is not None else number
                block[name] = replace(logical, unit=unit) if logical.unit == "*" else logical
                places[name] = Place(suffix, spec, part, expert)
    # Where several weights share a tensor, so do their biases; here each follows its weight.
    ranks: dict[tuple[Role, str], int] = {}
    for logical in block.values():
        ranks.setdefault((logical.role, logical.unit), len(ranks))
    names = sorted(block, key=lambda name: ranks[block[name].role, block[name].unit])
    block = {name: block[name] for name in names}
    return BlockAnatomy(kind, stored, block, places, {}, heads, family.norm_offset, family.bilinear)


def _kind(family: Family, present: set[str]) -> tuple[str, list[str]]:
    """Return the kind that a block comes nearest to, and the tensors that it then lacks."""
    best: tuple[int, str, list[str]] | None = None
    for kind, table in family.kinds.items():
        entries = [_stored(table, suffix) for suffix in present]
        extra = sum(entry is None for entry in entries)
        numbers = sorted({entry[2] for entry in entries if entry and entry[2]}, key=int)
        patterns = [p for p, spec in table.items() if not spec.optional]
        whole = [
            pattern.replace("*", number, 1)
            for pattern in patterns
            for number in (numbers if "*" in pattern else [""])
        ]
        missing = [suffix for suffix in whole if suffix not in present]
        if any("*" in pattern for pattern in patterns) and not numbers:
            missing.append(next(p for p in patterns if "*" in p).replace("*", "0", 1))
        distance = extra + len(missing)
        if best is None or distance < best[0]:
            best = distance, kind, missing or [s for s in present if _stored(table, s) is None]
    assert best is not None
    return best[1], best[2] if best[0] else []


def _missing(family: Family, index: int, missing: Sequence[str]) -> DeepenError:
    """Name the first tensor that a block lacks."""
    return DeepenError(
        f"The checkpoint lacks tensor {family.name(index, missing[0])!r}; fetch or export it again."
    )


def _name_missing(family: Family, suffixes: Sequence[set[str]]) -> None:
    """Raise for the first block that lacks what another one has."""
    everywhere = set().union(*suffixes)
    for index, present in enumerate(suffixes):
        if lacking := sorted(everywhere - present):
            raise _missing(family, index, lacking)


def _by_size(
    family: Family, blocks: tuple[BlockAnatomy, ...], shapes: Shapes
) -> tuple[BlockAnatomy, ...]:
    """Check that equal axis labels mean equal sizes; tell blocks of unequal size apart.

    Raises:
        DeepenError: Sizes disagree along an axis that the table does not call varying.
    """
    first: dict[Axis, tuple[str, int]] = {}
    anatomies: dict[tuple[int, tuple[tuple[Axis, int], ...]], BlockAnatomy] = {}
    result = []
    for index, block in enumerate(blocks):
        varying: dict[Axis, int] = {}
        for suffix, spec in block.stored.items():
            name = family.name(index, suffix)
            for axis, size in _sizes(spec, shapes[name], name, family, block.sizes):
                if axis in family.varying:
                    varying[axis] = size
                    continue
                other, expected = first.setdefault(axis, (name, size))
                if size != expected:
                    raise DeepenError(
                        f"Shapes differ between blocks: {name!r} has {size} along its {axis} axis "
                        f"where {other!r} has {expected}; blocks of unequal shape cannot be fused."
                    )
        kind = id(block), tuple(varying.items())
        result.append(anatomies.setdefault(kind, _sized(block, varying)))
    return tuple(result)


def _sized(block: BlockAnatomy, varying: Mapping[Axis, int]) -> BlockAnatomy:
    """Return a block's anatomy with sizes of its own."""
    return replace(block, sizes={**block.sizes, **varying}) if varying else block


def _sizes(
    spec: StoredSpec, shape: tuple[int, ...], name: str, family: Family, sizes: Mapping[Axis, int]
) -> list[tuple[Axis, int]]:
    """Return (axis label, size) of a stored tensor, as far as its shape tells one."""
    if spec.is_buffer:
        return []
    axes = spec.parts[0].axes
    labels = (*(("expert",) if spec.bank else ()), *axes)
    if len(labels) != len(shape):
        raise DeepenError(
            f"Tensor {name!r} has {len(shape)} axes where a {family.model_type!r} block has "
            f"{len(labels)}."
        )
    lengths = list(shape[1:] if spec.bank else shape)
    if spec.transposed and len(axes) == 2:
        lengths.reverse()
    sized = list(axes)
    if len({part.axes[0] for part in spec.parts}) > 1:
        rows = sum(sizes[part.axes[0]] for part in spec.parts)
        if lengths[0] != rows:
            raise DeepenError(
                f"Tensor {name!r} has {lengths[0]} rows where config.json makes it {rows}; "
                f"correct the checkpoint."
            )
        del sized[0], lengths[0]
    elif spec.split:
        lengths[0] //= len(spec.parts)
    return list(zip(sized, lengths, strict=True))
