"""The trained checkpoint: the one that was trained, with the trained tensors replaced.

Everything frozen is copied from the checkpoint on disk and never passes through the model, so that
it keeps its bits whatever dtype training computed in; that the model in memory still holds the same
values is checked on the way. Adapters are merged into the stored weights in float32, and rounded
once; trained neurons are put in their places among the stored ones.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.base.anatomy.layouts import assemble
from deepen.base.checkpoint import DTYPES, FolderSource, TensorInfo
from deepen.base.folder import portable
from deepen.base.model import Model
from deepen.common.errors import DivergedError
from deepen.growth.card import read_card
from deepen.growth.manifest import write_manifest
from deepen.growth.side_files import copy_side_files
from deepen.growth.staging import staged
from deepen.growth.write import ShardWriter
from deepen.planning.layout import new_tensors
from deepen.records.growth import FIELD, Lineage
from deepen.records.training import TrainRecord
from deepen.training.card import trained_card
from deepen.training.freeze import Trains, Whole
from deepen.training.record import lineage_after


def publish(
    model: Model,
    state: Mapping[str, Tensor],
    trains: Trains,
    out: Path,
    *,
    dtype: str | None = None,
    chat_template: str | None = None,
    record: TrainRecord,
) -> None:
    """Write the trained checkpoint to a folder that appears when it is whole.

    Args:
        model: The checkpoint that was trained.
        state: The module's parameters after training, under the names that they have in memory.
        trains: What was trained.
        out: The folder; an earlier one is replaced.
        dtype: Store every tensor so (``F32``); ``None`` keeps each tensor's own.
        chat_template: Template to store with the tokenizer.
        record: What the model card tells.

    Raises:
        RuntimeError: A frozen parameter has changed in memory.
        DeepenError: The disk is too small, or a trained tensor is no longer finite.
    """
    source = model.source
    assert isinstance(source, FolderSource)
    layout = {
        name: TensorInfo(dtype or info.dtype, info.shape) if info.is_float else info
        for name, info in source.infos.items()
    }
    needed = sum(info.nbytes for info in layout.values())
    whole, changed = Whole(model, trains, state), list[str]()
    with staged(out, {"trained": source.name}, needed, resume=False, overwrite=True) as folder:
        with closing(ShardWriter(folder, layout, "5GB")) as writer:
            for name, info in layout.items():
                tensor = source.load(name)
                made_of: set[str] = set()
                after = _after(name, model, whole, made_of)
                trained = trains.includes(model.family, name) or made_of & whole.changed.keys()
                if after is not None and trained:
                    tensor = after
                    _check_finite(name, tensor.to(DTYPES[info.dtype]), info.dtype)
                    changed.append(name)
                elif after is not None:
                    _check_unchanged(name, after, tensor)
                writer.write(name, tensor.to(DTYPES[info.dtype]).contiguous())
            writer.finish()
        lineage = lineage_after(model, trains, record, dtype)
        _write_side_files(source, folder, dtype, chat_template, record, lineage)
        new = new_tensors(model.family, lineage.new_blocks, layout)
        digests = {name: writer.digests[name] for name in {*new, *changed}}
        write_manifest(folder, source, writer.files, digests)


def _after(
    name: str, model: Model, state: Mapping[str, Tensor], made_of: set[str]
) -> Tensor | None:
    """Return a stored tensor as it is in memory; ``None`` if the module does not hold it.

    Names in memory that it is made of are added to ``made_of``.
    """

    def load(part: str) -> Tensor:
        made_of.add(part)
        return state[part]

    if name in model.anatomy.trailing:
        return None
    try:
        return assemble(
            name,
            model.source.infos[name].shape,
            model.anatomy,
            model.in_memory.anatomy,
            load,
        )
    except KeyError:
        return None


def _check_unchanged(name: str, after: Tensor, stored: Tensor) -> None:
    """Compare a frozen parameter, bit for bit, with the stored one."""
    if not torch.equal(after, stored.to(after.dtype)):
        raise RuntimeError(f"{name} is frozen, but training has changed it")


def _check_finite(name: str, stored: Tensor, dtype: str) -> None:
    """Refuse what the last step, or its rounding to the stored dtype, has made infinite.

    Raises:
        DivergedError: It has.
    """
    if not torch.isfinite(stored).all():
        raise DivergedError(
            f"Training has left values in {name} that are not finite in {dtype}; train again with "
            f"a lower training.learning_rate, or training.save_dtype=float32, into another output."
        )


def _write_side_files(
    source: FolderSource,
    folder: Path,
    dtype: str | None,
    chat_template: str | None,
    record: TrainRecord,
    lineage: Lineage,
) -> None:
    """Bring config, lineage, tokenizer and card along."""
    copy_side_files(source.folder, folder)
    config: dict[str, Any] = portable(source.config)
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    config[FIELD] = lineage.model_dump(mode="json")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    hub_id = source.name if source.revision else None
    card = trained_card(read_card(source.folder), record, hub_id)
    (folder / "README.md").write_text(card, encoding="utf-8")
