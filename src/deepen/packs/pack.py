"""Take the new blocks off: a pack is what a grown checkpoint holds and its base does not."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepen.base.checkpoint import FolderSource, Source, TensorInfo
from deepen.base.identity import difference
from deepen.base.weights.raw import read_header
from deepen.common.bounded import check_parts, read_json, read_text
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.common.progress import Progress, silent
from deepen.growth.base_files import MANIFEST, relative_files
from deepen.growth.side_files import copy_side_files
from deepen.growth.staging import check_out, staged
from deepen.growth.write import INDEX, Shard, layout_of, write_file
from deepen.packs.card import pack_card
from deepen.packs.grown import Grown, check_base_inside, open_grown
from deepen.planning.plan import Plan
from deepen.records.growth import Lineage, read_lineage
from deepen.records.pack import PackRecord

PACK = "pack.json"
"""What the pack is: the file that a pack is known by."""
BLOCKS = "blocks.safetensors"
"""Its tensors, under the names that they have in the grown checkpoint."""
FILES = "files"
"""The grown checkpoint's own files, config.json with the lineage among them."""


def pack(
    grown: str | Path,
    out: str | Path,
    *,
    growths: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PackRecord:
    """Write what a grown checkpoint holds and its base does not.

    That is the new blocks, trained or not, what else training may have changed, and files.

    Args:
        grown: The grown checkpoint.
        out: Folder of the pack; it appears when it is whole.
        growths: How many growths to take off, the latest ones; by default all.
        overwrite: Replace a pack at ``out``.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The checkpoint was not grown, does not hold its base, or the place is unusable.
    """
    opened, out = open_grown(Path(grown), growths), Path(out)
    check_out(out, opened.folder, overwrite=overwrite, marker=PACK)
    if problem := check_base_inside(opened):
        raise DeepenError(f"{problem}, so a pack of new blocks would not be all of it.")
    source, shared = opened.model.source, {*opened.kept} - {*opened.changed}
    assert isinstance(source, FolderSource)
    if source.is_pickled:
        raise DeepenError(f"{source.name} stores PyTorch .bin files; save it as safetensors first.")
    infos = {name: info for name, info in source.infos.items() if name not in shared}
    nbytes = sum(info.nbytes for info in infos.values())
    with staged(out, {"pack": source.name}, nbytes, resume=False, overwrite=overwrite) as folder:
        _write_blocks(source, infos, folder / BLOCKS, progress)
        record = _record(opened, source, folder / FILES, progress)
        record = record.model_copy(
            update={
                "tensors_sha256": digest_of(folder / BLOCKS),
                "weight_bytes": nbytes,
                "grown_weight_bytes": sum(info.nbytes for info in source.infos.values()),
            }
        )
        (folder / PACK).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = pack_card(record, opened)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return record


def _write_blocks(
    source: FolderSource, infos: dict[str, TensorInfo], file: Path, progress: Progress
) -> None:
    """Write a pack's tensors."""
    done = iter(range(len(infos)))

    def load(name: str) -> Tensor:
        progress("packing", next(done) / len(infos))
        return source.load(name)

    write_file(file, Shard.of(infos).header[8:].decode(), load)
    progress("packing", 1.0)


def _record(grown: Grown, source: FolderSource, files: Path, progress: Progress) -> PackRecord:
    """Copy the files that are not the base's own, and describe the pack."""
    files.mkdir()
    copy_side_files(source.folder, files)
    weights = {file.name: read_header(file) for file in source.weight_files}
    own = ["config.json", "README.md", MANIFEST]
    own += [] if {*weights} == {"model.safetensors"} else [INDEX]
    for name in own:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, files / name)
    digests = {name: digest_of(files / name) for name in relative_files(files)}
    copied = grown.base_files.copied if grown.base_files else {}
    from_base = [name for name, digest in digests.items() if copied.get(name) == digest]
    for name in from_base:
        (files / name).unlink()
    for done, file in enumerate(source.weight_files):
        progress("hashing", done / len(weights))
        digests[file.name] = digest_of(file)
    progress("hashing", 1.0)
    return PackRecord(
        name=source.name,
        base=grown.base,
        plan=grown.plan.to_json(),
        new_blocks=grown.plan.new_blocks,
        changed=grown.changed,
        weights=weights,
        files=digests,
        from_base=from_base,
        weight_bytes=0,
        grown_weight_bytes=0,
    )


@dataclass(frozen=True)
class Pack:
    """A pack, opened."""

    folder: Path
    """Where it lies."""
    record: PackRecord
    """What it is."""
    infos: dict[str, TensorInfo]
    """Name of a tensor that it holds → dtype and shape."""

    @property
    def name(self) -> str:
        """What to call it: its folder's name, never a path."""
        return self.folder.resolve().name

    @cached_property
    def plan(self) -> Plan:
        """The stack, as one growth of the base."""
        return Plan.from_json(self.record.plan)

    @cached_property
    def lineage(self) -> Lineage:
        """The grown checkpoint's lineage."""
        lineage = read_lineage(read_json(self.folder / FILES / "config.json"))
        assert lineage is not None
        return lineage

    def load(self, name: str) -> Tensor:
        """Return one tensor, mapped from disk."""
        with safe_open(self.folder / BLOCKS, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    def check_fits(self, source: Source) -> None:
        """Hold a base to the one that the pack fits on.

        Raises:
            DeepenError: It is another.
        """
        expected = self.record.base
        if differs := difference(source, expected.fingerprint, expected.sha256):
            raise DeepenError(
                f"BASE {source.name!r} {differs}, as {expected.name} has that the pack "
                f"{self.name!r} was taken off; give that one."
            )


def open_pack(folder: Path) -> Pack:
    """Open a pack.

    Raises:
        DeepenError: It is missing, damaged or none.
    """
    file = folder / PACK
    if not file.is_file():
        raise DeepenError(
            f"{str(folder)!r} is not a pack, it holds no {PACK}; make one with `deepen pack`."
        )
    text = read_text(file)
    check_parts(text, repr(str(file)))
    try:
        record = PackRecord.model_validate_json(text)
        with safe_open(folder / BLOCKS, framework="pt"):
            infos = layout_of(read_header(folder / BLOCKS))
    except ValidationError as error:
        first = error.errors()[0]
        raise DeepenError(
            f"{str(file)!r} is not one that this version understands "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); update deepen."
        ) from None
    except (SafetensorError, OSError) as error:
        raise DeepenError(
            f"The tensors of the pack {str(folder)!r} are missing or damaged ({error}); "
            f"pack the grown checkpoint again."
        ) from None
    if changed := _changed(folder, record):
        raise DeepenError(
            f"{changed} of the pack {str(folder)!r} is not what was packed; fetch the pack again, "
            f"or pack the grown checkpoint again."
        )
    return Pack(folder, record, infos)


def _changed(folder: Path, record: PackRecord) -> str | None:
    """Name a file of a pack that is not what was packed."""
    if record.tensors_sha256 not in (None, digest_of(folder / BLOCKS)):
        return BLOCKS
    for name in relative_files(folder / FILES):
        if record.files.get(name) != digest_of(folder / FILES / name):
            return f"{FILES}/{name}"
    return None
