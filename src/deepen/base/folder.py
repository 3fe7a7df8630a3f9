"""What lies in a checkpoint folder: which of its files transformers reads, and what is beside them.

Nothing is opened here but JSON. Folders collect things: a fine-tune saved into its base's folder
leaves an old index and its shards there, a training run an adapter, a download a GGUF file.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.common.bounded import MOST_BYTES, read_json
from deepen.common.errors import DeepenError
from deepen.common.files import leads_out

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers looks for, in its order. Source: transformers,
``modeling_utils._get_resolved_checkpoint_files``."""
ADAPTER = "adapter_config.json"
"""What peft calls the config of an adapter."""

_TEXTS = (".json", ".txt", ".md", ".jinja", ".model", ".tiktoken")
_EXPLICIT = "transformers_weights"
_LEFT_OUT = ("auto_map", _EXPLICIT)
_INDEX = ".index.json"
_WEIGHT_FILE = re.compile(r"(pytorch_)?model(?P<rest>[.-].*)?\.(safetensors|bin)(\.index.*\.json)?")
_VARIANT = re.compile(
    r"(?:pytorch_)?model\.(?:(?:safetensors|bin)\.index\.(?P<index>[^.]+)\.json"
    r"|(?P<single>[^.]+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin))"
)
_COUNTS = re.compile("(layers?|labels|blocks|depth|period|interval)$")
"""Keys of config.json that count what transformers lists one by one."""
_SIZES = re.compile("size|dim|heads|experts|rank|groups|positions?|inner|embd|model|ffn|state|len")
"""Keys that say how large tensors are."""
_MOST_COUNTED, _MOST_SIZE, _MOST_INTEGER = 10_000, 2**27, 2**63 - 1

_UNWRAP = "save the model inside, `model.{}.save_pretrained(OUT)`, or take that out of every name"
_MERGE = "merge the adapter, `model.merge_and_unload().save_pretrained(OUT)`"
_GATHER = "gather the whole state dict, without its wrappers, and save that"
_WRAPPERS = {
    r"^module\.": ("torch's DataParallel", _UNWRAP.format("module")),
    r"(^|\.)_orig_mod\.": ("torch.compile", _UNWRAP.format("_orig_mod")),
    r"^base_model\.model\.|\.(lora_[AB]|base_layer)\.": ("peft", _MERGE),
    r"(^|\.)_(fsdp|checkpoint)_wrapped_module\.": ("torch's FSDP", _GATHER),
}
"""What stands in a tensor's name that a wrapper gave it → the wrapper, and the way out."""


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder that transformers reads."""

    name: str
    """The file that it looks for: the weights, or the index of shards."""
    files: tuple[Path, ...]
    """The files that hold tensors; where two hold one of the same name, the later one counts."""
    promised: Mapping[str, str]
    """Tensor name → file, as an index says."""

    @property
    def is_pickled(self) -> bool:
        """Whether they are PyTorch ``.bin`` files."""
        return self.files[0].suffix == ".bin"


def check_folder(folder: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DeepenError: It is a file, or not there, or holds what libraries would read forever: a pipe,
            a device, a text of gigabytes.
    """
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise DeepenError(
                    f"{str(file)!r} is no regular file; remove it from the checkpoint's folder."
                )
            if file.suffix in _TEXTS and file.stat().st_size > MOST_BYTES:
                raise DeepenError(
                    f"{str(file)!r} is larger than {MOST_BYTES:,} bytes, which no such file is; "
                    f"check what it is."
                )
        return
    if folder.suffix.lower() == ".gguf":
        if not folder.is_file():
            raise DeepenError(f"There is no file {str(folder)!r}; check the path.")
        raise DeepenError(f"{str(folder)!r} is a GGUF file; {_import(folder)}")
    if folder.is_file():
        raise DeepenError(
            f"{str(folder)!r} is a file; name the checkpoint's folder, which holds config.json too."
        )
    raise DeepenError(f"There is no folder {str(folder)!r}; check the path.")


def check_numbers(value: Any, file: str, key: str = "") -> None:  # noqa: ANN401 (JSON)
    """Refuse sizes that no model has, for which transformers would take all memory.

    Raises:
        DeepenError: There is one.
    """
    if isinstance(value, Mapping):
        for name, entry in value.items():
            check_numbers(entry, file, name)
    elif isinstance(value, list):
        for entry in value:
            check_numbers(entry, file, key)
    elif isinstance(value, int):
        counts, sizes = _COUNTS.search(key), _SIZES.search(key)
        most = _MOST_COUNTED if counts else _MOST_SIZE if sizes else _MOST_INTEGER
        if abs(value) > most:
            raise DeepenError(
                f"{key!r} in {file!r} is {value}, and no model has more than {most:,}; correct it."
            )


def find_weights(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """Find the weights that ``from_pretrained`` would read.

    Args:
        folder: The checkpoint.
        config: Its config.json, which may name the file.

    Raises:
        DeepenError: There are none, the index is damaged, or a file is missing.
    """
    name = _named_by(config) or next((n for n in WEIGHTS if (folder / n).is_file()), None)
    if name is None:
        raise refusal(folder) or DeepenError(
            f"Folder {str(folder)!r} holds no model.safetensors or pytorch_model.bin; "
            f"fetch the weights."
        )
    if not (folder / name).is_file():
        raise DeepenError(
            f"config.json of {str(folder)!r} names {name!r} in {_EXPLICIT}, and it is not there; "
            f"fetch it, or correct the config."
        )
    promised = _read_index(folder / name) if name.endswith(_INDEX) else {}
    files = tuple(folder / file for file in sorted({*promised.values()} or {name}))
    for file in files:
        if not file.is_file():
            raise DeepenError(
                f"Shard {file.name!r} is named by {name!r} but missing; fetch it again."
            )
    return WeightFiles(name, files, promised)


def _named_by(config: Mapping[str, Any]) -> str | None:
    """Return the file that config.json names, if it does.

    Raises:
        DeepenError: transformers would not read it.
    """
    name = config.get(_EXPLICIT)
    if name is None:
        return None
    if leads_out(str(name)) or not str(name).endswith((".safetensors", f".safetensors{_INDEX}")):
        raise DeepenError(
            f"config.json names {name!r} in {_EXPLICIT}, and transformers reads nothing there but "
            f"safetensors files of the folder and their indices; correct it."
        )
    return str(name)


def _read_index(index: Path) -> dict[str, str]:
    """Read a shard index: tensor name → file."""
    try:
        weight_map = read_json(index)["weight_map"]
        usable = weight_map and all(isinstance(file, str) for file in weight_map.values())
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise DeepenError(f"{str(index)!r} is not a shard index with a weight_map; fetch it again.")
    for file in weight_map.values():
        if leads_out(file):
            raise DeepenError(
                f"{str(index)!r} names the shard {file[:80]!r}, which is not a file of its folder; "
                f"correct the index, or fetch the checkpoint again."
            )
    return dict(weight_map)


def is_own(path: Path, folder: Path) -> bool:
    """Whether what lies in a folder is its own, and no link out of it.

    The hub's cache is a folder in this sense: its snapshots are links into ``blobs``.
    """
    there, root = (Path(os.path.realpath(place)) for place in (path, folder))  # circles are none
    cached = root.parent.name == "snapshots" and root.parents[1] / "blobs" in there.parents
    return there.is_relative_to(root) or cached


def unread(folder: Path, weights: WeightFiles) -> list[str]:
    """Name further weights in a folder, which transformers does not read."""
    read = {weights.name, *(file.name for file in weights.files)}
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return [name for name in names if name not in read and _WEIGHT_FILE.fullmatch(name)]


def remarks(name: str, folder: Path, config: Mapping[str, Any], weights: WeightFiles) -> list[str]:
    """Tell what the user should know of how a folder was read, a sentence each.

    Args:
        name: What to call the model.
        folder: The checkpoint.
        config: Its config.json.
        weights: What was read of it.
    """
    told = []
    if weights.is_pickled:
        told.append(
            f"{name} stores PyTorch .bin files; they were read with weights-only loading "
            f"and the grown model is written as safetensors."
        )
    if others := unread(folder, weights):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        told.append(
            f"{name} holds other weights too: {weights.name} was read, as transformers does, "
            f"{', '.join(others[:3])}{more} not."
        )
    if config.get("auto_map"):
        told.append(
            f"config.json of {name} names custom code (auto_map), which was neither read nor run: "
            f"transformers has a class of its own for {config['model_type']!r}, and the grown "
            f"model is of that class, without auto_map."
        )
    return told


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without what names files that a new checkpoint does not have."""
    return {key: value for key, value in config.items() if key not in _LEFT_OUT}


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a class of its own for a config."""
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def refusal(folder: Path) -> DeepenError | None:
    """Say what a folder is that transformers does not load as a model, and the way out.

    ``None`` if nothing is known of it.
    """
    where, names = repr(str(folder)), sorted(file.name for file in folder.iterdir())
    if ADAPTER in names:
        return DeepenError(
            f"Folder {where} holds an adapter{_base_of(folder / ADAPTER)}, and no model; merge it "
            f"into its base, `AutoPeftModelForCausalLM.from_pretrained(ADAPTER)."
            f"merge_and_unload().save_pretrained(OUT)`, and give that folder."
        )
    if files := [name for name in names if name.lower().endswith(".gguf")]:
        return DeepenError(
            f"Folder {where} holds GGUF weights ({files[0]}); {_import(folder / files[0])}"
        )
    for name in names:
        if (match := _VARIANT.fullmatch(name)) and (variant := match["index"] or match["single"]):
            return DeepenError(
                f"Folder {where} holds the variant {variant!r} of its weights alone ({name}), "
                f"which transformers reads only when told to; save it as an ordinary checkpoint, "
                f"`AutoModelForCausalLM.from_pretrained(FOLDER, variant={variant!r})."
                f"save_pretrained(OUT)`, with its tokenizer, and give that folder."
            )
    if shards := [name for name in names if re.search(r"^\w*model-\d+-of-\d+\.", name)]:
        return DeepenError(
            f"Folder {where} holds shards ({shards[0]}) without their index, "
            f"{shards[0].partition('-')[0]}{Path(shards[0]).suffix}{_INDEX}; fetch that too."
        )
    return None


def _import(file: Path) -> str:
    """Say how a GGUF file becomes a checkpoint."""
    return f"write it as a checkpoint with `deepen import {file} OUT`, and give OUT."


def _base_of(config: Path) -> str:
    """Say what an adapter's config names as its base, if it does."""
    try:
        base = read_json(config)["base_model_name_or_path"]
    except (DeepenError, KeyError, TypeError):
        return ""
    return f" of {base!r}" if isinstance(base, str) and base else ""


def refuse_wrapped(name: str, tensors: Iterable[str]) -> None:
    """Refuse tensors that carry the names of a wrapper, of which transformers would find none.

    Args:
        name: What to call the model.
        tensors: The tensors' names.

    Raises:
        DeepenError: One does.
    """
    for tensor, (wrapper, way_out) in _wrapped(tensors):
        raise DeepenError(
            f"{name} names its tensors as {wrapper} does ({tensor!r}), where transformers does not "
            f"find them; {way_out}."
        )


def _wrapped(tensors: Iterable[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield tensors that a wrapper named, and what the wrapper is."""
    for tensor in tensors:
        for pattern, wrapper in _WRAPPERS.items():
            if re.search(pattern, tensor):
                yield tensor, wrapper
