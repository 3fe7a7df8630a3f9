"""Say beside a checkpoint what was written: the SHA-256 of every file and of every new tensor.

config.json cannot tell whether it was edited, nor a new block whether it is the one that was made.
The manifest tells, and whoever keeps its own SHA-256 elsewhere can tell that of the manifest too.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from deepen.base.checkpoint import FolderSource
from deepen.common.bounded import check_parts, read_text
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.growth.base_files import MANIFEST, relative_files
from deepen.records.verification import FileDigest, Manifest


def write_manifest(
    folder: Path,
    made_from: FolderSource,
    files: Mapping[str, FileDigest],
    new_tensors: Mapping[str, str],
) -> str:
    """Write the manifest, once everything else lies in the folder.

    Args:
        folder: The new checkpoint.
        made_from: What was grown or trained.
        files: What its weight files were meant to be: what the disk returns is not asked.
        new_tensors: Tensor that was made or trained → SHA-256 of its bytes.

    Returns:
        The manifest's own SHA-256.
    """
    manifest = Manifest(
        made_from={file.name: _described(file) for file in made_from.weight_files},
        files={
            name: files.get(name) or _described(folder / name) for name in visible_files(folder)
        },
        new_tensors=dict(sorted(new_tensors.items())),
    )
    text = manifest.model_dump_json(indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return digest_of(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest | None:
    """Read a checkpoint's manifest; ``None`` if it has none.

    Raises:
        DeepenError: It is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    text = read_text(file)
    check_parts(text, repr(str(file)))
    try:
        return Manifest.model_validate_json(text)
    except ValidationError:
        raise DeepenError(
            f"{str(file)!r} is damaged, or of a later version; fetch the checkpoint again, or "
            f"update deepen."
        ) from None


def visible_files(folder: Path) -> list[str]:
    """Return the files that a manifest lists, all that are not hidden, by their path inside it."""
    names = (Path(name) for name in relative_files(folder))
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return [name.as_posix() for name in shown if str(name) != MANIFEST]


def _described(file: Path) -> FileDigest:
    """Describe a file."""
    return FileDigest(sha256=digest_of(file), size_bytes=file.stat().st_size)
