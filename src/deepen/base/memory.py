"""A model as transformers holds it in memory, its weights left where they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepen.base.anatomy import Anatomy, dissect
from deepen.base.anatomy.family import Config
from deepen.base.anatomy.layouts import assemble
from deepen.base.anatomy.towers import TOWERS
from deepen.base.checkpoint import FolderSource, Source, TensorInfo, transformers_config
from deepen.base.folder import ADAPTER
from deepen.common.errors import DeepenError


class Described(Source):
    """A checkpoint that is yet to be written: its tensors have a shape and no content."""

    revision = None

    def __init__(
        self, name: str, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]
    ) -> None:
        """Say what it will be."""
        self.name, self.config, self.infos = name, config, infos

    def load(self, name: str) -> Tensor:
        """Return a tensor of the right shape on the meta device."""
        return torch.empty(self.infos[name].shape, device="meta")


def _nothing(name: str) -> None:
    """Have no other tensor."""


class Weights(Mapping[str, Tensor]):
    """A source's tensors in float32, loaded on access, as the model in memory has them."""

    def __init__(self, load: Callable[[str], Tensor], names: Mapping[str, str]) -> None:
        """Load nothing yet.

        Args:
            load: Loads a tensor by the name that it has in memory.
            names: Every name in memory → the one that it is loaded by, where tensors are tied.
        """
        self._load, self._names = load, names
        self._instead: Callable[[str], Tensor | None] = _nothing

    def stored(self, name: str) -> Tensor:
        """Load a tensor in its stored dtype, a quantised one in float32."""
        return self._load(self._names.get(name, name))

    def __getitem__(self, name: str) -> Tensor:
        """Load a tensor in float32."""
        if (other := self._instead(name)) is not None:
            return other
        # Copied, because products over memory that is not aligned can round otherwise, and shards
        # align to 8 bytes at most.
        return self.stored(name).to(torch.float32, copy=True)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in memory."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._names)

    @contextmanager
    def replaced(self, instead: Callable[[str], Tensor | None]) -> Iterator[None]:
        """Hand out other tensors for a while; those that it has none for stay as they are."""
        before, self._instead = self._instead, instead
        try:
            yield
        finally:
            self._instead = before


@dataclass(frozen=True)
class InMemory:
    """A model as transformers holds it, without its weights."""

    module: nn.Module
    """The model; its parameters are on the meta device, its buffers are real."""
    anatomy: Anatomy
    """Its tensors under the names that it uses."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name → shape, each tensor once."""
    weights: Weights
    """What its weights are, when it runs."""

    @classmethod
    def of(cls, source: Source, resolved: Config, anatomy: Anatomy) -> Self:
        """Build transformers' model of a config and match it against the family's table.

        Args:
            source: The checkpoint.
            resolved: Its config with the family's defaults filled in.
            anatomy: What its blocks are made of.

        Raises:
            DeepenError: transformers cannot build such a model, or would not load these tensors
                into it.
        """
        module = empty_model(source)
        aliases = getattr(module, "all_tied_weights_keys", {})
        shapes = {n: tuple(t.shape) for n, t in module.state_dict().items() if n not in aliases}
        own = dissect(anatomy.table, resolved, shapes, source.shapes)
        if own.family.tower:
            own = replace(own, beside=_beside(module, anatomy))
        _check_shapes(source, resolved, shapes, own, anatomy)
        names = {name: name for name, _ in module.named_parameters(remove_duplicate=False)}

        def load(name: str) -> Tensor:
            return assemble(name, shapes[name], own, anatomy, source.value)

        return cls(module, own, shapes, Weights(load, names | aliases))

    def load(self, name: str) -> Tensor:
        """Load a tensor by the name that it has in memory, as ``Weights.stored`` does."""
        return self.weights.stored(name)


def _beside(module: Any, anatomy: Anatomy) -> dict[str, str]:  # noqa: ANN401 (a transformers model)
    """Find what stands beside a text model, by the names that transformers gives it as it loads.

    Args:
        module: transformers' model.
        anatomy: The checkpoint.

    Returns:
        Name in memory → the checkpoint's. What is put together from several tensors is left out,
        and so is what transformers does not know.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(module)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, there = module.base_model_prefix, module.state_dict()
    names = {}
    for stored in anatomy.outside:
        if stored not in anatomy.family.around:
            name, converted = rename_source_key(stored, renamings, converters, prefix, there)
            if not converted:
                names[name if name in there else stored] = stored
    return names


def empty_model(source: Source) -> nn.Module:
    """Build the transformers model of a source's config, without weights but with its buffers.

    What is yet to be written will not be run, and has none of these either.

    Raises:
        DeepenError: transformers cannot.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    described = isinstance(source, Described)
    try:
        config = transformers_config(source)
        empty = torch.device("meta") if described else init_empty_weights(include_buffers=False)
        with no_init_weights(), empty:  # a size of random weights that is none refuses nothing
            module: nn.Module = auto_class(source).from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # many types, for configs that contradict themselves
        raise DeepenError(
            f"transformers cannot build {source.name} as its config.json describes it "
            f"({_reason(error)}); correct it."
        ) from None
    return module.eval()


def auto_class(source: Source) -> Any:  # noqa: ANN401 (transformers' classes have no types)
    """Return the class that loads a checkpoint's model, whole."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole = source.config.get("model_type") in TOWERS
    return AutoModelForImageTextToText if whole else AutoModelForCausalLM


def load_pretrained(source: FolderSource, dtype: "torch.dtype | str") -> Any:  # noqa: ANN401 (transformers' classes have no types)
    """Load a checkpoint's model with its weights, as any user would.

    Args:
        source: The checkpoint.
        dtype: What to compute in; ``"auto"`` is the stored one.

    Raises:
        DeepenError: transformers cannot load it, would make up tensors that it lacks, or would load
            an adapter with it.
    """
    if (source.folder / ADAPTER).is_file():
        raise DeepenError(
            f"{source.name} holds an adapter beside the model, which transformers loads onto it "
            f"where peft is installed; merge it, or remove {ADAPTER}, so that one model is meant."
        )
    loaded = auto_class(source)
    try:
        module, told = loaded.from_pretrained(
            source.folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # many types, for whatever stands in a checkpoint's files
        raise DeepenError(
            f"transformers cannot load {source.name} ({_reason(error)}); correct the checkpoint."
        ) from None
    if missing := sorted(told["missing_keys"]):
        raise lacks(source.name, missing)
    return module


def lacks(name: str, missing: Sequence[str]) -> DeepenError:
    """Say that tensors are missing, which transformers would initialise at random.

    Args:
        name: What to call the model.
        missing: The tensors' names.
    """
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return DeepenError(
        f"{name} lacks tensor {missing[0]!r}{more}, which the model that config.json describes "
        f"has, and transformers would make it up; correct config.json or fetch the tensor."
    )


def _reason(error: Exception) -> str:
    """Return an error's message as one line."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _check_shapes(
    source: Source,
    resolved: Config,
    shapes: Mapping[str, tuple[int, ...]],
    own: Anatomy,
    anatomy: Anatomy,
) -> None:
    """Compare every shape in memory with what the stored tensors make.

    Raises:
        DeepenError: They differ, so that transformers would refuse to load the checkpoint.
    """

    def load(name: str) -> Tensor:
        return torch.empty(source.infos[name].shape, device="meta")

    for name, shape in shapes.items():
        place = own.family.split(name)
        if place is not None and own.blocks[place[0]].stored[place[1]].is_buffer:
            continue
        try:
            found = tuple(assemble(name, shape, own, anatomy, load).shape)
        except KeyError:  # what is missing, and not of another shape
            continue
        except (RuntimeError, IndexError):  # parts that do not go into the whole
            found = None
        if found != shape:
            raise DeepenError(_contradiction(source.name, resolved, name, shape, found))


def _contradiction(
    source: str,
    resolved: Config,
    name: str,
    shape: tuple[int, ...],
    found: tuple[int, ...] | None,
) -> str:
    """Say where tensors and config.json disagree, and which of its fields has that size."""
    pairs = zip(found or (), shape, strict=False)
    wrong = next((size for stored, size in pairs if stored != size), None)
    fields = [key for key, value in resolved.items() if type(value) is int and value == wrong]
    named = f" ({', '.join(fields)})" if 0 < len(fields) < 4 else ""
    stored = f"is {list(found)}" if found else "has another size"
    return (
        f"transformers would not load {source}: {name!r} {stored} in the checkpoint and "
        f"{list(shape)} in the model that config.json describes{named}; correct config.json."
    )
