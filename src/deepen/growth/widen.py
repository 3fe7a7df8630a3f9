"""Widen every FFN of a checkpoint: what one would do instead of growing it deeper.

A new neuron's output column is zero, so that the base's function is kept, as after growing. Its
input rows are random. A copy of a neuron, as in Net2Net (arXiv 1511.05641), would have the
activations, and so the gradient, of the one that it was copied from, and could at first learn
nothing that a larger learning rate on that neuron's output would not do; random rows are features
that the block does not have. An entry has the root mean square of its column in the block's own
rows, so that a few large dimensions of the stream do not drown all others. Biases are the block's
mean.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.base.checkpoint import FolderSource, TensorInfo
from deepen.base.folder import portable
from deepen.base.layers import ffn_width, neuron_tensors
from deepen.base.memory import Described
from deepen.base.model import Model, as_model, open_model
from deepen.base.streamed import missing_and_extra
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.seeds import generator_for
from deepen.growth.card import read_card
from deepen.growth.side_files import copy_side_files, tell
from deepen.growth.staging import check_out, staged
from deepen.growth.write import ShardWriter
from deepen.records.growth import BaseIdentity, WidenRecord

_NAMES = re.compile(r"inner|intermediate|ffn|ffw|feed|mlp")
"""What config fields of an FFN's width are called."""


def widen(
    model: str | Path,
    out: str | Path,
    neurons: int,
    *,
    seed: int = 0,
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: Progress = silent,
) -> WidenRecord:
    """Give every FFN of a checkpoint more neurons, and write an ordinary checkpoint.

    Args:
        model: Checkpoint folder or hub id.
        out: Folder to write; it appears when it is whole.
        neurons: How many neurons each FFN is given, behind its own.
        seed: Seed of their input rows.
        revision: Branch, tag or commit on the hub.
        max_shard_size: Largest size of a weight file, in bytes or as in ``"5GB"``.
        overwrite: Replace an existing checkpoint at ``out``.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The model's FFNs are experts or otherwise not of plain neurons of one number,
            its config cannot say another width, or the place is unusable; nothing is then written.
    """
    out, base = Path(out), open_model(model, revision)
    if neurons < 1:
        raise DeepenError(f"{neurons} neurons cannot be added to an FFN; name at least 1.")
    source = base.source
    assert isinstance(source, FolderSource)
    check_out(out, source.folder, overwrite=overwrite)
    tell(source)
    wider, fields = _described(base, neurons)
    total = sum(info.nbytes for info in wider.source.infos.values())
    record = _record(base, wider, out, neurons, fields, seed)
    asked = {"widen": record.model_dump(), "max_shard_size": str(max_shard_size)}
    with staged(out, asked, total, resume=False, overwrite=overwrite) as folder:
        with closing(ShardWriter(folder, wider.source.infos, max_shard_size)) as writer:
            done = 0
            for name, tensor in _tensors(base, wider, neurons, seed):
                progress("widen: writing", done / total)
                writer.write(name, tensor)
                done += wider.source.infos[name].nbytes
            writer.finish()
        _write_side_files(source, folder, wider.source.config, record)
        if FolderSource(folder).infos != wider.source.infos:
            raise RuntimeError(f"what was written to {folder} does not read back as planned")
    return record


def _record(
    base: Model, wider: Model, out: Path, neurons: int, fields: list[str], seed: int
) -> WidenRecord:
    """Say what is done."""
    source = base.source
    identity = BaseIdentity(
        name=source.name, revision=source.revision, fingerprint=source.fingerprint
    )
    return WidenRecord(
        out=str(out),
        base=identity,
        seed=seed,
        neurons=neurons,
        width=ffn_width(wider),
        config_fields=fields,
        base_parameters=source.parameters,
        parameters=wider.source.parameters,
        new_parameters=wider.source.parameters - source.parameters,
    )


def _described(base: Model, neurons: int) -> tuple[Model, list[str]]:
    """Describe the wider model, proven to fit what transformers makes of its config.

    Returns:
        The model, whose tensors have shapes only, and the config fields that hold the width.

    Raises:
        DeepenError: The model cannot be widened.
    """
    width, name = ffn_width(base), base.source.name
    if base.anatomy.trailing:
        raise DeepenError(
            f"{name} has multi-token-prediction blocks, whose width config.json gives together "
            f"with the others'; remove them to widen it."
        )
    infos = dict(base.source.infos)
    for index, block in enumerate(base.anatomy.blocks):
        for logical, axis in neuron_tensors(block, index, name).items():
            place = block.places[logical]
            tensor = base.family.name(index, place.suffix)
            shape = list(infos[tensor].shape)
            shape[1 - axis if place.stored.transposed and len(shape) == 2 else axis] += neurons
            infos[tensor] = TensorInfo(infos[tensor].dtype, tuple(shape))
    fields = _fields(base.resolved, width)
    for chosen in chain(([field] for field in fields), [fields] if len(fields) > 1 else []):
        wider = {field: _wider(base.resolved[field], width + neurons) for field in chosen}
        config = base.whole_config(portable(base.config) | wider)
        try:
            model = as_model(Described(name, config, infos))
            if not any(missing_and_extra(model)):
                return model, chosen
        except Exception:  # whatever transformers raises for a config that makes no sense
            continue
    raise DeepenError(
        f"{name} cannot be widened: no field of config.json sets the {width} neurons of its FFNs "
        f"and nothing else."
    )


def _fields(resolved: Mapping[str, Any], width: int) -> list[str]:
    """Name the config fields that may hold the width, the likeliest first."""
    found = []
    for field, value in resolved.items():
        entries = value if isinstance(value, list | tuple) else [value]
        same = bool(entries) and all(type(e) is int and e == width for e in entries)
        # GPT-2's n_inner: without a value, four times the stream's width.
        if same or (value is None and _NAMES.search(field)):
            found.append(field)
    return sorted(found, key=lambda field: not _NAMES.search(field))


def _wider(value: object, width: int) -> int | list[int]:
    """Return a config field's new value, one number or one for each block."""
    return [width] * len(value) if isinstance(value, list | tuple) else width


def _tensors(base: Model, wider: Model, neurons: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the wider model's tensors in their stored dtype, one at a time."""
    source = base.source
    for name, info in wider.source.infos.items():
        old = source.load(name)
        place = base.family.split(name)
        if place is None or info == source.infos[name]:
            yield name, old
            continue
        index, suffix = place
        before, after = base.anatomy.blocks[index], wider.anatomy.blocks[index]
        grown = neuron_tensors(before, index, source.name)
        new = torch.empty(info.shape, dtype=old.dtype)
        for logical, where in before.places.items():
            if where.suffix != suffix:
                continue
            part = where.read(old, before.sizes)
            if logical in grown:
                more = _more(part, grown[logical], neurons, f"{seed} {index} {logical}")
                part = torch.cat([part, more.to(part.dtype)], grown[logical])
            after.places[logical].write(part, new, after.sizes)
        yield name, new


def _more(own: Tensor, axis: int, neurons: int, what: str) -> Tensor:
    """Make the rows, columns or biases of new neurons.

    Args:
        own: The block's own: ``[ffn, in]``, ``[out, ffn]`` or ``[ffn]``.
        axis: Which axis counts neurons.
        neurons: How many are made.
        what: What they are for: all that random numbers depend on.
    """
    if axis == 1:
        return own.new_zeros(own.shape[0], neurons)
    if own.dim() == 1:
        return own.float().mean().expand(neurons)
    noise = torch.randn(neurons, own.shape[1], generator=generator_for(what))
    return noise * own.float().square().mean(0).sqrt()


def _write_side_files(
    source: FolderSource, folder: Path, config: Mapping[str, Any], record: WidenRecord
) -> None:
    """Write config.json and the model card; bring the tokenizer and everything else along."""
    copy_side_files(source.folder, folder)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    card = read_card(source.folder).rstrip()
    before = f"{card}\n\n" if card else ""
    section = (
        f"## Wider FFNs\n\nEvery FFN of {record.base.name} was given {record.neurons:,} neurons "
        f"behind its own and has {record.width:,} now. Their outputs are zero: until they are "
        f"trained, the model computes what it did.\n"
    )
    (folder / "README.md").write_text(before + section, encoding="utf-8")
