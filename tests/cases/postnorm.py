"""Families with a norm on the way out."""

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
# Not what any family makes of six blocks by itself.
PATTERN = [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL]

_GEMMA4 = {"layer_types": PATTERN, "hidden_size_per_layer_input": 0, "global_head_dim": 8}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {}),
    "gemma3_text": ("gemma3_text", {"layer_types": PATTERN}),
    "gemma4_text": ("gemma4_text", {**_GEMMA4, "global_head_dim": 16, "attention_k_eq_v": True}),
    "gemma4_text-experts": (
        "gemma4_text",
        {**_GEMMA4, "enable_moe_block": True, "top_k_experts": 2},
    ),
    "gemma4_unified_text": ("gemma4_unified_text", {**_GEMMA4, "global_head_dim": 16}),
    "vaultgemma": ("vaultgemma", {"layer_types": PATTERN}),
    "olmo2": ("olmo2", {"attention_bias": True}),
    "olmo3": ("olmo3", {"layer_types": PATTERN}),
    "glm4": ("glm4", {"attention_bias": True}),
    "exaone4": ("exaone4", {"layer_types": PATTERN}),
    "hyperclovax": ("hyperclovax", {"attention_bias": True, "residual_multiplier": 0.5}),
    "hyperclovax-plain": ("hyperclovax", {"use_post_norm": False, "mlp_bias": True}),
}
