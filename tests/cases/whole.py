"""Tiny models that read images too, every parameter of them random."""

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

import shrink

IMAGE = shrink.VOCABULARY - 1
"""The token that stands for a piece of an image."""

# Whatever a vision tower calls its sizes.
_EYE: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
    "intermediate_size": 16,
    "mlp_ratio": 1,
    "image_size": 16,
    "patch_size": 8,
    "num_position_embeddings": 16,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}
_QWEN: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE - 1,
    "vision_start_token_id": IMAGE - 2,
    "vision_end_token_id": IMAGE - 3,
}

_CLIP: dict[str, Any] = {"model_type": "clip_vision_model"}
_INDEX: dict[str, Any] = {"image_token_index": IMAGE}

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "gemma3",
        "gemma3_text",
        {"model_type": "siglip_vision_model"},
        {},
        {**_INDEX, "mm_tokens_per_image": 4},
    ),
    "llava": ("llava", "llama", _CLIP, {}, _INDEX),
    "llava-mixtral": ("llava", "mixtral", _CLIP, {}, _INDEX),
    "qwen2_vl": (
        "qwen2_vl",
        "qwen2_vl_text",
        {"model_type": "qwen2_vl_vision", "hidden_size": 32},
        {"rope_parameters": _ROPE, **_WINDOWS},
        _QWEN,
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        "qwen2_5_vl_text",
        {"model_type": "qwen2_5_vl_vision", "window_size": 32},
        {"rope_parameters": _ROPE},
        _QWEN,
    ),
    "qwen3_vl": (
        "qwen3_vl",
        "qwen3_vl_text",
        {"model_type": "qwen3_vl_vision", "deepstack_visual_indexes": [0, 1]},
        {"rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        _QWEN,
    ),
}
"""Name → the model, its text model, and settings of its vision tower, its text model and itself."""


def config(case: str, **settings: Any) -> Any:
    """Return the config of a tiny model."""
    model_type, text, eye, text_settings, own = CASES[case]
    cls = CONFIG_MAPPING[eye["model_type"]]
    default, parameters = cls(), inspect.signature(cls.__init__).parameters
    sizes = {k: v for k, v in _EYE.items() if hasattr(default, k) or k in parameters}
    return CONFIG_MAPPING[model_type](
        text_config=shrink.config(text, **{**text_settings, **settings}).to_dict(),
        vision_config={**sizes, **eye},
        **own,
    )


def model(case: str, seed: int = 0, **settings: Any) -> Any:
    """Build a tiny model, every parameter of it random, norms and biases too."""
    return shrink.random_model(AutoModelForImageTextToText, config(case, **settings), seed)


def load(folder: Path) -> Any:
    """Load a checkpoint as any user would, with no tensor missing or left over."""
    return shrink.load(folder, AutoModelForImageTextToText)


def logits(built: Any, *, with_image: bool) -> torch.Tensor:
    """Run a model on text, with or without an image of random pixels in its middle."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 300, (1, 24), generator=generator)
    image: dict[str, torch.Tensor] = {}
    if with_image:
        ids[0, 10:14] = IMAGE
        image["pixel_values"] = torch.randn(1, 3, 16, 16, generator=generator)
        if "image_grid_thw" in inspect.signature(built.forward).parameters:
            image["pixel_values"] = torch.randn(16, 3 * 2 * 8 * 8, generator=generator)
            image["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        for kinds in ("token_type_ids", "mm_token_type_ids"):
            if kinds in inspect.signature(built.forward).parameters:
                image[kinds] = (ids == IMAGE).long()
    with torch.no_grad():
        found: torch.Tensor = built(input_ids=ids, **image, use_cache=False).logits
    return found
