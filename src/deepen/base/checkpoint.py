"""A checkpoint, read lazily: config.json and tensors, from a checkpoint folder or a live module.

A tensor is mapped from disk when it is asked for and unmapped when it is dropped, so that reading
a whole model never holds more of it in memory than the caller keeps.
"""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from deepen.base import quantised
from deepen.base.folder import (
    WeightFiles,
    check_folder,
    check_numbers,
    find_weights,
    is_native,
    refusal,
    refuse_wrapped,
    remarks,
)
from deepen.base.weights.pickled import read_pickle
from deepen.base.weights.raw import ITEM_BYTES, Stored, places_in
from deepen.common.bounded import read_json
from deepen.common.errors import DeepenError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig


class _Dtypes(Mapping[str, "torch.dtype"]):
    """A table of torch's dtypes that imports torch when one is asked for."""

    _names: Final = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
        "F8_E4M3": "float8_e4m3fn",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
    }

    def __getitem__(self, name: str) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self._names[name])
        return dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


DTYPES: Final = _Dtypes()
"""The stored dtypes that can be copied: safetensors' name → torch dtype."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Those among them that new weights can be computed in; the others hold masks, quantised weights
and the like."""
_FINGERPRINT_BYTES = 65536
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a stored tensor without reading it."""

    dtype: str
    """Stored dtype by safetensors' name, for example ``BF16``."""
    shape: tuple[int, ...]
    """Size along each axis."""

    @property
    def is_float(self) -> bool:
        """Whether it can be a parameter."""
        return self.dtype in FLOATS

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""
        return self.parameters * ITEM_BYTES[self.dtype]


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a model has, by its config; ``None`` if it does not say."""
    for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(positions := config.get(field), int):
            return positions if positions > 0 else None
    text = config.get("text_config")  # of a model that reads more than text
    return positions_of(text) if isinstance(text, Mapping) else None


class Source(ABC):
    """A model to grow: its config and its tensors, each loaded when asked for."""

    name: str
    """What to call the model in records: a hub id or a folder's name, never a path."""
    revision: str | None
    """The hub commit, if the model came from the hub."""
    config: Mapping[str, Any]
    """The content of config.json."""
    infos: Mapping[str, TensorInfo]
    """Tensor name → dtype and shape."""

    @abstractmethod
    def load(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype, on the CPU, read-only."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape."""
        return {name: info.shape for name, info in self.infos.items()}

    @property
    def parameters(self) -> int:
        """Number of stored parameters; tied tensors count once, scales not."""
        return sum(i.parameters for name, i in self.infos.items() if name not in self.scales)

    @functools.cached_property
    def quantisation(self) -> quantised.Quantisation | None:
        """How its weights are quantised; ``None`` if they are not."""
        return quantised.read_quantisation(self.config, self.name)

    @functools.cached_property
    def scales(self) -> Mapping[str, str]:
        """Name of what lies beside a quantised weight → the weight."""
        return quantised.scales_of(self.quantisation, self.infos)

    def value(self, name: str) -> Tensor:
        """Return a tensor that can be computed with: quantised ones in float32."""
        return self.value_of(name, self.load(name))

    def value_of(self, name: str, stored: Tensor) -> Tensor:
        """Return what a tensor would stand for if this were what is stored of it."""
        quantisation = self.quantisation
        if quantisation is None or self.infos[name].dtype != quantisation.dtype:
            return stored
        return quantisation.values(stored, self.load(quantisation.scale_of(name)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every tensor's name, dtype, shape and first and last 64 KiB, sorted by name.

        It does not depend on how the tensors are sharded. It tells which base a model was grown
        from; that the kept blocks are equal to the last bit is shown by ``verify``.
        """
        digest = hashlib.sha256()
        for name in sorted(self.infos):
            info = self.infos[name]
            digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
            for end in self._ends(name):
                digest.update(end)
        return digest.hexdigest()

    def stored(self, name: str) -> Stored | None:
        """Say where a tensor's bytes lie; ``None`` if not as they are in a file."""
        return None

    def _ends(self, name: str) -> tuple[Any, Any]:
        """Return the first and the last bytes of a tensor."""
        if (stored := self.stored(name)) is not None:
            return stored.ends(_FINGERPRINT_BYTES)
        raw = as_bytes(self.load(name)).numpy().data
        return raw[:_FINGERPRINT_BYTES], raw[-_FINGERPRINT_BYTES:]


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's contents as ``uint8``, flat, without a copy if it is contiguous."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def info_of(tensor: Tensor, name: str) -> TensorInfo:
    """Describe a tensor in memory.

    Raises:
        DeepenError: Its dtype is not one that can be grown.
    """
    stored = next((own for own, dtype in DTYPES.items() if dtype == tensor.dtype), None)
    if stored is None:
        raise _no_weight(name, tensor.dtype)
    return TensorInfo(stored, tuple(tensor.shape))


def _no_weight(name: str, dtype: object) -> DeepenError:
    """Make the error for a tensor that nothing can be computed with."""
    return DeepenError(
        f"Tensor {name!r} is stored as {dtype}, which deepen cannot compute with; "
        f"give it an unquantised checkpoint ({', '.join(FLOATS)})."
    )


class ModuleSource(Source):
    """A live ``PreTrainedModel``."""

    def __init__(self, module: torch.nn.Module, config: Mapping[str, Any]) -> None:
        """Wrap a module; its tensors are read, never changed."""
        name = str(config.get("_name_or_path") or type(module).__name__)
        self.name = Path(name).name if Path(name).is_dir() else name
        self.revision = None
        self.config = config
        self._tensors = _without_tied_head(module.state_dict())
        refuse_wrapped(self.name, self._tensors)
        quantised.refuse_quantised(self.quantisation, self.name)
        self.infos = {name: info_of(tensor, name) for name, tensor in self._tensors.items()}

    def load(self, name: str) -> Tensor:
        """Return one tensor of the module, detached, on the CPU."""
        return self._tensors[name].detach().cpu()


class FolderSource(Source):
    """A Hugging Face checkpoint folder with safetensors or PyTorch ``.bin`` weights.

    What is read is what ``from_pretrained`` would read, whatever else lies there.
    """

    def __init__(self, folder: Path, name: str | None = None, revision: str | None = None) -> None:
        """Read config.json and the headers of all weight files; load no weights.

        Raises:
            DeepenError: The folder, its config or its weights are missing, damaged, quantised in
                a way that is not read, or in a form that transformers does not load by itself.
        """
        check_folder(folder)
        self.folder = folder
        self.name = name or folder.resolve().name
        self.revision = revision
        self.config = read_config(folder)
        self._weights = find_weights(folder, self.config)
        self._pickled: tuple[str, dict[str, Tensor]] | None = None
        self._files: dict[str, Path] = {}
        self._places: dict[Path, dict[str, Stored]] = {}
        self.infos = self._read_infos(self._weights)
        refuse_wrapped(self.name, self.infos)
        quantised.check_scales(self.quantisation, self.infos, self.name)

    @property
    def is_pickled(self) -> bool:
        """Whether the weights are PyTorch ``.bin`` files."""
        return self._weights.is_pickled

    @property
    def remarks(self) -> list[str]:
        """What the user should know of how the folder was read, a sentence each."""
        return remarks(self.name, self.folder, self.config, self._weights)

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold its tensors."""
        return sorted({*self._files.values()})

    def load(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype, mapped from disk."""
        file = self._files[name]
        if file.suffix == ".bin":
            return self._load_pickle(file)[name]
        # A handle of its own, so that dropping the tensor also drops its pages from memory.
        with safe_open(file, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    def stored(self, name: str) -> Stored | None:
        """Say where a tensor's bytes lie; ``None`` if in a pickle."""
        if (file := self._files[name]).suffix == ".bin":
            return None
        if file not in self._places:
            self._places[file] = places_in(file)
        return self._places[file][name]

    def _load_pickle(self, file: Path) -> dict[str, Tensor]:
        """Map one ``.bin`` file, keeping only the latest in reach."""
        if self._pickled is None or self._pickled[0] != file.name:
            self._pickled = None
            self._pickled = (file.name, read_pickle(file))
        return self._pickled[1]

    def _read_infos(self, weights: WeightFiles) -> dict[str, TensorInfo]:
        """Collect dtype and shape of every tensor, holding the files to their index.

        As for transformers, a tensor is where it lies, and not where the index says.
        """
        infos: dict[str, TensorInfo] = {}
        for file in weights.files:
            header = self._header(file)
            infos |= header
            self._files |= dict.fromkeys(header, file)
        for name, where in weights.promised.items():
            if name not in infos and not name.endswith(_HEAD):  # tied heads need not be there
                raise DeepenError(
                    f"The index says that {where!r} holds tensor {name!r}, but it is not there; "
                    f"fetch or export the checkpoint again."
                )
        return infos

    def _header(self, file: Path) -> dict[str, TensorInfo]:
        """Read dtype and shape of the tensors in one weight file."""
        if file.suffix == ".bin":
            tensors = _without_tied_head(self._load_pickle(file))
            return {name: info_of(tensor, name) for name, tensor in tensors.items()}
        infos = {}
        with _open_safetensors(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                part = handle.get_slice(name)
                if part.get_dtype() not in ITEM_BYTES:
                    raise _no_weight(name, part.get_dtype())
                infos[name] = TensorInfo(part.get_dtype(), tuple(part.get_shape()))
        return infos


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json.

    Raises:
        DeepenError: It is missing, not JSON, or asks for custom code, or for weights
            quantised in a way that is not read.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise refusal(folder) or DeepenError(
            f"Folder {str(folder)!r} has no config.json; it is not a Hugging Face checkpoint."
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise DeepenError(f"{str(file)!r} does not hold a JSON object; it is not a model's config.")
    check_numbers(config, str(file))
    if not isinstance(config.get("model_type"), str | None):
        raise DeepenError(f"model_type in {str(file)!r} is no text; correct it.")
    quantised.read_quantisation(config, str(folder))
    # transformers takes a Mistral that lists the types of its blocks for a Ministral.
    if config.get("model_type") == "mistral" and "layer_types" in config:
        config |= {"model_type": "ministral"}
    if config.get("auto_map") and not is_native(config):
        raise DeepenError(
            f"{str(file)!r} asks for custom code (auto_map); deepen grows only models that "
            f"transformers loads by itself."
        )
    return config


def _open_safetensors(file: Path) -> Any:  # noqa: ANN401 (the handle's type is not public)
    """Open a safetensors file; a damaged one is named."""
    try:
        return safe_open(file, framework="np")  # of which only the header is read
    except (SafetensorError, OSError) as error:
        raise DeepenError(
            f"{str(file)!r} is truncated or damaged ({str(error)[:200]}); fetch it again."
        ) from None


def _without_tied_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop an output head that is the same memory as another tensor, as safetensors files do."""
    head = tensors.get(_HEAD)
    tied = head is not None and any(
        tensor.data_ptr() == head.data_ptr() for name, tensor in tensors.items() if name != _HEAD
    )
    return {name: tensor for name, tensor in tensors.items() if not (tied and name == _HEAD)}


def transformers_config(source: Source) -> PreTrainedConfig:
    """Return transformers' config object of a source, of its weights' values where quantised."""
    return config_object({key: v for key, v in source.config.items() if key != quantised.FIELD})


def config_object(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Return transformers' config object of the content of a config.json."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict(_untagged(config))


def _untagged(value: Any) -> Any:  # noqa: ANN401 (anything that JSON holds)
    """Return a part of config.json with the numbers that JSON lacks: transformers tags infinity."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _untagged(entry) for key, entry in value.items()}
    return [_untagged(entry) for entry in value] if isinstance(value, list) else value
