"""Show an image to models that read images: random pixels, through transformers' own class."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from deepen.base.checkpoint import transformers_config
from deepen.base.model import Model
from deepen.base.streamed import streamed

_SIDE = 4
"""Patches along a side of an image, where a model takes images of any size."""
_WORDS = 4
"""Tokens of text before the image, and as many behind it."""


def image_logits(model: Model, tokens: Tensor, device: torch.device) -> Tensor:
    """Return the logits of a text with an image in it, ``[1, length, vocabulary]`` in float32.

    Args:
        model: A model that reads images.
        tokens: Token ids ``[batch, length]`` to take the text from.
        device: Where to compute.

    Raises:
        ValueError: It is not known how this model is shown an image.
    """
    config = transformers_config(model.source)
    with streamed(model, device) as memory:
        module: Any = memory.module
        image = _image(config, module.get_image_features, device)
        seen = module.get_image_features(**image, return_dict=True).pooler_output
        count = sum(len(part.flatten(0, -2)) for part in _parts(seen))
        words = tokens[:1, : 2 * _WORDS]
        pieces = torch.full((1, count), _image_token(config))
        ids = torch.cat([words[:, :_WORDS], pieces, words[:, _WORDS:]], 1).to(device)
        shown = (ids == _image_token(config)).long()
        accepted = signature(module.forward).parameters
        kinds = {
            name: shown for name in ("token_type_ids", "mm_token_type_ids") if name in accepted
        }
        return module(input_ids=ids, **image, **kinds, use_cache=False).logits.cpu()


def _parts(seen: Any) -> list[Tensor]:  # noqa: ANN401 (a tensor, or one for each image)
    """Return what a vision tower hands on, image by image."""
    return [seen] if isinstance(seen, Tensor) else list(seen)


def _image_token(config: Any) -> int:  # noqa: ANN401 (a transformers config)
    """Return the token that stands for a piece of an image.

    Raises:
        ValueError: The config does not say.
    """
    for field in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, field, None), int):
            return token
    raise ValueError("config.json names no image_token_id")


def _image(
    config: Any,  # noqa: ANN401 (a transformers config)
    sees: Callable[..., object],
    device: torch.device,
) -> dict[str, Tensor]:
    """Make an image of random pixels as a model's vision tower takes it.

    Raises:
        ValueError: It is not known how it takes one.
    """
    eye, takes = config.vision_config, signature(sees).parameters
    channels = eye.in_channels if hasattr(eye, "in_channels") else eye.num_channels
    generator = torch.Generator().manual_seed(0)
    if "image_grid_thw" in takes:  # patches in a row
        side = _SIDE * eye.spatial_merge_size
        numbers = channels * eye.temporal_patch_size * eye.patch_size**2
        pixels = torch.randn(side * side, numbers, generator=generator)
        grid = torch.tensor([[1, side, side]], device=device)
        return {"pixel_values": pixels.to(device), "image_grid_thw": grid}
    size = getattr(eye, "image_size", None)
    if not isinstance(size, int):
        raise ValueError("vision_config of config.json names no image_size")
    pixels = torch.randn(1, channels, size, size, generator=generator)
    return {"pixel_values": pixels.to(device)}
