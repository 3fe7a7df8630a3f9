"""Bring along what lies beside a checkpoint's weights: tokenizer, templates, licence."""

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from deepen.base.checkpoint import FolderSource
from deepen.base.folder import ADAPTER, is_own
from deepen.base.text import tokenizer_code, tokenizer_of
from deepen.common.errors import DeepenError
from deepen.growth.base_files import MANIFEST
from deepen.growth.card import front_matter, read_card

# Weights, training state and code stay behind; every other file of a checkpoint comes along.
_LEFT_BEHIND = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"),
    *(".npz", ".tflite", ".py"),
}
# An adapter's config too: without its weights, which stay behind, transformers loads nothing.
_REWRITTEN = {"config.json", "README.md", "trainer_state.json", ADAPTER, MANIFEST}
_GENERATION = "generation_config.json"
_INDEX = re.compile(r".*\.index(\..+)?\.json")
_TEMPLATES = "additional_chat_templates"


def side_files(source: Path) -> list[str]:
    """Name a checkpoint's files that come along, all but those that a new one writes itself."""
    names = []
    for file in sorted(source.iterdir()):
        wanted = file.suffix not in _LEFT_BEHIND and file.name not in _REWRITTEN
        hidden = file.name.startswith(".") or _INDEX.fullmatch(file.name)
        if file.is_file() and wanted and not hidden:
            names.append(file.name)
    templates = sorted((source / _TEMPLATES).rglob("*"))
    names += [file.relative_to(source).as_posix() for file in templates if file.is_file()]
    return [name for name in names if is_own(source / name, source)]


def copy_side_files(source: Path, out: Path) -> None:
    """Copy a checkpoint's files, all but those that the new checkpoint writes itself."""
    for name in side_files(source):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)


def tell(source: FolderSource) -> None:
    """Warn of how a checkpoint was read, and of what does not come along."""
    for remark in [*source.remarks, *left_behind(source)]:
        warnings.warn(remark, stacklevel=3)


def left_behind(source: FolderSource) -> list[str]:
    """Tell what does not come along though it changes what is loaded, a sentence each."""
    told = [*_links_out(source)]
    if (source.folder / ADAPTER).is_file():
        told.append(
            f"{source.name} holds an adapter beside the model, which transformers loads onto it "
            f"where peft is installed; the model was grown without it, and it does not come "
            f"along: merge it first if it belongs to the model."
        )
    if code := tokenizer_code(source.folder):
        told.append(_custom_tokenizer(source, code))
    return [*told, *_unreadable(source, tokenizer=code is None)]


def _unreadable(source: FolderSource, *, tokenizer: bool) -> Iterator[str]:
    """Tell which files beside the weights nobody can read; all of them come along as they are."""
    from transformers import GenerationConfig

    try:
        front_matter(read_card(source.folder))
    except ValueError as error:
        yield (
            f"The front matter of {source.name}'s card (README.md) cannot be read ({error}): its "
            f"licence and languages do not stand in the grown model's."
        )
    if (source.folder / _GENERATION).is_file():
        try:
            GenerationConfig.from_pretrained(source.folder)
        except Exception as error:  # many types, for whatever stands in the file
            yield (
                f"{_GENERATION} of {source.name} cannot be read ({_reason(error)}); it comes along "
                f"as it is, and transformers may load no model beside it until it is mended."
            )
    if tokenizer and any(source.folder.glob("*token*")):
        try:
            tokenizer_of(source)
        except DeepenError as error:
            yield f"{str(error).rstrip('.')}; what is there comes along as it is."


def _reason(error: Exception) -> str:
    """Return an error's message as a part of a sentence."""
    return " ".join(str(error).split())[:100].rstrip(".") or type(error).__name__


def _links_out(source: FolderSource) -> Iterator[str]:
    """Tell of links that lead out of the folder, to what may be anything of the user's."""
    links = [file for file in source.folder.iterdir() if file.is_symlink()]
    beside = {*source.weight_files}
    out = sorted(f.name for f in links if f not in beside and not is_own(f, source.folder))
    if out:
        yield (
            f"{', '.join(out)} of {source.name} are links that lead out of its folder, and do not "
            f"come along; copy the files there if they belong to the model."
        )


def _custom_tokenizer(source: FolderSource, code: str) -> str:
    """Tell what becomes of a tokenizer that names custom code."""
    said = f"The tokenizer of {source.name} names custom code ({code}), which was neither run nor"
    repository, elsewhere, _ = code.rpartition("--")
    file = f"{code.partition('.')[0]}.py"
    way_out = f"copy {file} beside the grown model" if not elsewhere else f"it lies at {repository}"
    try:
        tokenizer_of(source)
    except DeepenError:
        return (
            f"{said} copied: the grown tokenizer does not load without it; if you trust it, "
            f"{way_out} and pass trust_remote_code=True."
        )
    return (
        f"{said} copied: transformers has a class of its own for it; for the code instead, "
        f"{way_out}."
    )
