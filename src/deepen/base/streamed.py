"""Run a checkpoint of any size in float32 with about one tensor in memory.

The model is built without weights; accelerate's offload hooks fetch each tensor from the source
when its module runs and drop it afterwards. Where transformers lays tensors out otherwise than the
checkpoint does, each one is put together when it is fetched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepen.base.anatomy import Anatomy
from deepen.base.anatomy.layouts import missing
from deepen.base.memory import InMemory, lacks
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.common.system import return_freed_memory


def missing_and_extra(model: Model) -> tuple[list[str], list[str]]:
    """Compare a checkpoint's tensors with what ``from_pretrained`` would look for.

    Returns:
        The tensors that transformers' model needs and the checkpoint lacks, and those it has too
        many.
    """
    memory, ours = model.in_memory, model.anatomy
    lacking = [part for name in memory.shapes for part in missing(name, memory.anatomy, ours)]
    carried = model.family.carried
    kept = [n for n in model.source.infos if n not in ours.trailing and not n.startswith(carried)]
    extra = [part for name in kept for part in missing(name, ours, memory.anatomy)]
    tied = set(getattr(memory.module, "all_tied_weights_keys", {}))
    return sorted(set(lacking)), sorted(set(extra) - tied)


def check_complete(model: Model) -> None:
    """Hold a checkpoint to what ``from_pretrained`` would look for.

    Args:
        model: The checkpoint; it may be yet to be written.

    Raises:
        DeepenError: transformers would not load it, would leave a tensor out, or would make one up.
    """
    name = model.source.name
    missing, extra = missing_and_extra(model)
    if missing:
        raise lacks(name, missing)
    if extra:
        raise DeepenError(
            f"{name} has tensor {extra[0]!r}, which the model that config.json describes does not "
            f"have, and transformers would leave it out; correct config.json."
        )


@contextmanager
def streamed(model: Model, device: torch.device) -> Iterator[InMemory]:
    """Make a model ready to run in float32, its weights fetched as its modules run.

    Args:
        model: The model.
        device: Where to compute.
    """
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    memory = model.in_memory
    module = memory.module
    for name, buffer in module.named_buffers():
        if name in memory.shapes and _is_learned(memory.anatomy, name):
            buffer.copy_(memory.load(name))
    handles = [
        block.register_forward_hook(lambda *_: return_freed_memory())
        for block in module.get_submodule(model.blocks_path).children()
    ]
    if model.family.embeds_apart:
        handles.append(module.register_forward_pre_hook(_embedded, with_kwargs=True))
    cpu_offload(
        module,
        execution_device=device,
        state_dict=memory.weights,
        preload_module_classes=list(model.family.preload),
    )
    try:
        with torch.no_grad():
            yield memory
    finally:
        remove_hook_from_module(module, recurse=True)
        for handle in handles:
            handle.remove()


@contextmanager
def run_explained(model: Model) -> Iterator[None]:
    """Turn the errors of a model that transformers cannot run into a sentence.

    Raises:
        DeepenError: It cannot.
    """
    try:
        yield
    except (DeepenError, torch.OutOfMemoryError, OSError):  # nor is a disk's failure the model's
        raise
    except Exception as error:  # many types, for configs and weights that do not belong together
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DeepenError(
            f"transformers cannot run {model.source.name} as its config.json describes it "
            f"({reason}); correct the checkpoint."
        ) from error


def logits(model: Model, tokens: Tensor, device: torch.device) -> Tensor:
    """Return a causal language model's logits ``[batch, length, vocabulary]`` in float32.

    Args:
        model: The model.
        tokens: Token ids ``[batch, length]``.
        device: Where to compute.

    Raises:
        DeepenError: transformers cannot run it.
    """
    with run_explained(model), streamed(model, device) as memory:
        return memory.module(tokens.to(device), use_cache=False).logits.cpu()


def _embedded(
    module: Any,  # noqa: ANN401 (a transformers model)
    args: tuple[Tensor],
    kwargs: dict[str, Any],
) -> tuple[tuple[()], dict[str, Any]]:
    """Give a model the embeddings of its tokens instead of the tokens."""
    return (), {"inputs_embeds": module.get_input_embeddings()(*args), **kwargs}


def _is_learned(anatomy: Anatomy, name: str) -> bool:
    """Whether a buffer that checkpoints hold is part of what the model has learned."""
    place = anatomy.family.split(name)
    return place is None or not anatomy.blocks[place[0]].stored[place[1]].is_buffer
