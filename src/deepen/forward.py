"""Run a checkpoint of any size in float32 with about one tensor in memory.

The model is built without weights; accelerate's offload hooks fetch each tensor from the source
when its module runs and drop it afterwards.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from deepen.checkpoint import Source


class _Weights(Mapping[str, Tensor]):
    """A source's tensors in float32, loaded on access, under the names that the model uses."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source.load(self._names[name]).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def empty_model(source: Source) -> nn.Module:
    """Build the transformers model of a source's config, without weights but with its buffers."""
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[source.config["model_type"]].from_dict(dict(source.config))
    with init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def missing_and_extra(source: Source) -> tuple[list[str], list[str]]:
    """Compare a source with what ``from_pretrained`` would look for.

    Returns:
        The tensors that transformers' model needs and the source lacks, and those it has too many.
    """
    model = empty_model(source)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    expected = set(model.state_dict())
    found = set(source.infos)
    return sorted(expected - found - tied), sorted(found - expected)


@torch.no_grad()
def logits(source: Source, tokens: Tensor, device: torch.device) -> Tensor:
    """Return a causal language model's logits ``[batch, length, vocabulary]`` in float32.

    Args:
        source: The model.
        tokens: Token ids ``[batch, length]``.
        device: Where to compute.
    """
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    model = empty_model(source)
    names = {name: name for name in source.infos}
    for tied, original in getattr(model, "all_tied_weights_keys", {}).items():
        names.setdefault(tied, original)
    cpu_offload(model, execution_device=device, state_dict=_Weights(source, names))
    try:
        return model(tokens.to(device), use_cache=False).logits.cpu()
    finally:
        remove_hook_from_module(model, recurse=True)
