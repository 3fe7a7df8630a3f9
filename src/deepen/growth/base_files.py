"""Keep beside a grown model what it does not hold of its base's files, to have them back.

Kept tensors are the base's bytes, and its tokenizer came along. What is lost is little: the model
card, config.json, and how tensors lie in weight files. That is ``deepen-base.json``. It is a file
like others beside the weights, so that training brings it along. Of a model that was grown several
times it holds the earlier one.
"""

import json
from pathlib import Path

from deepen.base.checkpoint import FolderSource
from deepen.base.folder import is_own
from deepen.base.weights.raw import read_header
from deepen.common.bounded import check_parts, read_text
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.growth.write import INDEX, Shard, layout_of
from deepen.records.pack import BaseFiles

BASE_FILES = "deepen-base.json"
"""Name of the file."""
MANIFEST = "deepen-manifest.json"
"""What was written, beside it: a base that was grown itself has one of its own."""


def write_base_files(source: FolderSource, out: Path) -> None:
    """Write the file, once everything that comes along lies in the new folder.

    Args:
        source: The base.
        out: Folder of the grown checkpoint.
    """
    text = json.dumps(_base_files(source, out).model_dump(mode="json"), indent=2) + "\n"
    (out / BASE_FILES).write_text(text, encoding="utf-8")


def _base_files(source: FolderSource, out: Path) -> BaseFiles:
    """Read what is lost of a base."""
    files = source.weight_files
    if source.is_pickled:
        weights = {"model.safetensors": Shard.of(source.infos).header[8:].decode()}
    else:
        weights = {file.name: read_header(file) for file in files}
    names = ["config.json", "README.md", BASE_FILES, MANIFEST]
    names += [] if source.is_pickled or {*weights} == {"model.safetensors"} else [INDEX]
    files = [source.folder / name for name in names]
    here = {file.name: file for file in files if file.is_file() and is_own(file, source.folder)}
    return BaseFiles(
        # What is not UTF-8 survives as lone surrogates, which JSON writes as escapes.
        texts={
            name: file.read_bytes().decode(errors="surrogateescape") for name, file in here.items()
        },
        weights=weights,
        copied={
            name: digest_of(out / name)
            for name in relative_files(out)
            if (source.folder / name).is_file() and not _is_written(name)
        },
    )


def _is_written(name: str) -> bool:
    """Whether a checkpoint's file is written by growing and not copied."""
    written = name in {"config.json", "README.md", BASE_FILES, MANIFEST}
    return written or name.endswith((".safetensors", ".index.json"))


def relative_files(folder: Path) -> list[str]:
    """Return a folder's files, those in folders inside it too, by the path inside it."""
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def read_base_files(folder: Path, growths: int) -> BaseFiles | None:
    """Read what of the base's files a grown checkpoint keeps.

    Args:
        folder: The grown checkpoint.
        growths: How many growths ago the base was.

    Returns:
        ``None`` if it was grown by a deepen that did not keep it, or written anew since.

    Raises:
        DeepenError: The file is damaged.
    """
    file = folder / BASE_FILES
    text = read_text(file) if file.is_file() else None
    kept = None
    for _ in range(growths):
        if text is None:
            return None
        check_parts(text, repr(str(file)))
        try:
            # pydantic's own reader of JSON refuses lone surrogates.
            kept = BaseFiles.model_validate(json.loads(text))
            for header in kept.weights.values():
                layout_of(header)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            DeepenError,
        ):
            raise DeepenError(
                f"{str(file)!r} is damaged; copy the one of the grown checkpoint beside it."
            ) from None
        text = kept.texts.get(BASE_FILES)
    return kept
