"""Pre-norm families with gated FFNs."""

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
# Not what any family makes of six blocks by itself.
PATTERN = [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL]

_BIASED = {"attention_bias": True, "mlp_bias": True}
# Heads of 12 dimensions: lists of RoPE factors are as long as the model is deep.
_LONG_ROPE = {
    "hidden_size": 48,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [2.0, 2.1, 2.2, 2.3, 2.4, 2.5],
    },
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral": ("ministral", {"layer_types": PATTERN}),
    "ministral3": ("ministral3", {}),
    "cwm": ("cwm", {"layer_types": PATTERN, "bos_token_id": 1}),
    "smollm3": (
        "smollm3",
        {
            **_BIASED,
            "no_rope_layers": [0, 1, 1, 0, 1, 0],
            "use_sliding_window": True,
            "layer_types": PATTERN,
        },
    ),
    "granite": ("granite", {**_BIASED, "residual_multiplier": 0.4}),
    "granite_swa": (
        "granite_swa",
        {"layer_types": PATTERN, "layer_rope_theta": [0, 1e4, 1e4, 5e3, 0, 1e4]},
    ),
    "gemma": ("gemma", {"attention_bias": True}),
    "seed_oss": ("seed_oss", {**_BIASED, "attention_out_bias": True}),
    "internlm3": ("internlm3", _BIASED),
    "iquestcoder": ("iquestcoder", {}),
    "helium": ("helium", {"attention_bias": True}),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "cohere": ("cohere", {"attention_bias": True}),
    "cohere-normed": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", {"layer_types": PATTERN}),
    "cohere_compass_text": (
        "cohere_compass_text",
        {
            "layer_types": PATTERN,
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
                FULL: None,
            },
        },
    ),
    "phi3": ("phi3", _LONG_ROPE),
    "phi3-partial": ("phi3", {"partial_rotary_factor": 0.5, "num_key_value_heads": 1}),
    "glm": ("glm", {}),
    "arcee": ("arcee", _BIASED),
    "jais2": ("jais2", {}),
    "olmo": ("olmo", {"clip_qkv": 0.5, "attention_bias": True}),
    "nanochat": ("nanochat", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"attention_bias": True}),
    "apertus": ("apertus", {"attention_bias": True}),
    "bitnet": ("bitnet", {"attention_bias": True}),
    "doge": ("doge", _BIASED),
    "doge-experts": ("doge", {"is_moe": True, "num_experts": 16}),
    "youtu": ("youtu", {**_LATENT, "head_dim": 4}),
    "minicpm3": ("minicpm3", {**_LATENT, "attention_bias": True}),
    "minicpm3-whole": ("minicpm3", {**_LATENT, "q_lora_rank": None}),
}
