"""What lies beside a grown model's weights, held to its manifest and, without that, to the base.

A manifest can be edited as well as what it protects, so nothing here passes on its word alone that
the base can tell too.
"""

from collections.abc import Iterator
from pathlib import Path

from deepen.base.checkpoint import FolderSource, TensorInfo
from deepen.base.folder import WEIGHTS
from deepen.base.identity import tensor_digest
from deepen.common.bounded import parse_json, read_json
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.growth.base_files import BASE_FILES, MANIFEST, read_base_files
from deepen.growth.manifest import read_manifest, visible_files
from deepen.growth.side_files import side_files
from deepen.growth.write import layout_of
from deepen.records.pack import BaseFiles
from deepen.records.verification import Check, Manifest
from deepen.verification.claim import Claim, check_of

_CARD = "README.md"  # for people: no loader reads it, and people go on writing it
_TEMPLATE = "chat_template.jinja"  # fine-tuning may store its own


def manifest_digest(folder: Path) -> str | None:
    """Return the SHA-256 of a checkpoint's manifest; ``None`` if it has none."""
    file = folder / MANIFEST
    return digest_of(file) if file.is_file() else None


def check_written(grown: FolderSource, claim: Claim, expected: str | None) -> Check:
    """Hold every file, and every tensor that was made, to the manifest.

    Args:
        grown: The grown or trained model.
        claim: What it claims.
        expected: SHA-256 that the manifest must have; ``None`` if nobody kept it.
    """
    name, digest = "files are those that were written", manifest_digest(grown.folder)
    if expected is not None and digest != expected.lower():
        detail = f"{MANIFEST} has SHA-256 {digest}, not {expected}" if digest else f"no {MANIFEST}"
        return Check(name=name, passed=False, detail=detail)
    if claim.elsewhere:
        return Check(name=name, passed=True, detail="not compared: others wrote them since")
    manifest = read_manifest(grown.folder)
    if manifest is None or digest is None:
        detail = (
            f"not compared: no {MANIFEST}, as earlier versions and other tools leave it; only "
            f"`deepen reproduce` can tell whether the numbers in new blocks are those that were "
            f"made"
        )
        return Check(name=name, passed=True, detail=detail)
    problems = [*_changed_files(grown.folder, manifest), *_changed_tensors(grown, manifest)]
    detail = f"{len(manifest.files)} files, {len(manifest.new_tensors)} tensors that were made"
    file = grown.folder / _CARD
    card = manifest.files.get(_CARD)
    if card and (not file.is_file() or digest_of(file) != card.sha256):
        detail += f"; {_CARD}, which no loader reads, was changed since"
    return check_of(name, problems, f"{detail}; manifest {digest[:12]}")


def _changed_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with files."""
    there = {*visible_files(folder)} - {_CARD}
    for name, written in manifest.files.items():
        if name == _CARD:
            continue
        if name not in there:
            yield f"{name} is missing"
        elif digest_of(folder / name) != written.sha256:
            yield f"{name} was changed"
    yield from (f"{name} was added" for name in sorted(there - manifest.files.keys()))


def _changed_tensors(grown: FolderSource, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with tensors that were made."""
    for name, digest in manifest.new_tensors.items():
        if name in grown.infos and tensor_digest(grown.load(name)) != digest:
            yield f"{name} is not what was made"


def check_side_files(base: FolderSource, grown: FolderSource, claim: Claim) -> Check:
    """Hold tokenizer, generation config and all else that came along to the base's own files."""
    theirs = [name for name in side_files(base.folder) if name not in (BASE_FILES, MANIFEST)]
    if claim.trainings:
        theirs = [name for name in theirs if name != _TEMPLATE]
    there = {*visible_files(grown.folder)}
    own = {"config.json", _CARD, BASE_FILES, *(file.name for file in grown.weight_files), *theirs}
    own |= {WEIGHTS[1]} if len(grown.weight_files) > 1 else set()
    own |= {_TEMPLATE} if claim.trainings else set()
    problems = [
        *(f"{name} of the base is missing" for name in theirs if name not in there),
        *(
            f"{name} is not the base's"
            for name in theirs
            if name in there and digest_of(grown.folder / name) != digest_of(base.folder / name)
        ),
        *(f"{name} is neither the base's nor written by deepen" for name in sorted(there - own)),
    ]
    return check_of("files beside the weights are the base's", problems, f"{len(theirs)} files")


def check_base_files(base: FolderSource, grown: FolderSource, claim: Claim) -> Check | None:
    """Hold what ``deepen shrink`` would write to the base; ``None`` where it was not kept."""
    steps = claim.steps
    if not steps or steps[0].base.fingerprint != base.fingerprint:  # it is that of another base
        return None
    try:
        kept = read_base_files(grown.folder, len(steps))
        if kept is None:
            return None
        problems, detail = [*_untrue(kept, base)], f"{len(base.infos)} tensors"
    except (DeepenError, ValueError, LookupError, TypeError, AttributeError) as error:
        problems, detail = [f"it cannot be read ({error})"], ""
    return check_of(f"{BASE_FILES} true of the base", problems, detail)


def _untrue(kept: BaseFiles, base: FolderSource) -> Iterator[str]:
    """Yield what was kept of a base's files and is not so."""
    infos: dict[str, TensorInfo] = {}
    for header in kept.weights.values():
        infos |= layout_of(header)
    if infos != base.infos:
        yield "its tensors are not the base's"
    text = kept.texts.get("config.json", "").removeprefix("\ufeff")  # a byte order mark
    if parse_json(text, f"config.json in {BASE_FILES}") != read_json(base.folder / "config.json"):
        yield "its config.json is not the base's"
    for name, digest in kept.copied.items():
        if (base.folder / name).is_file() and digest_of(base.folder / name) != digest:
            yield f"its SHA-256 of {name} is not that of the base's"
