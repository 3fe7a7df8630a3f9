"""Mixtures of experts."""

from typing import Any

# Latent attention at four heads: keys of 8 + 4 dimensions, values of 6.
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
_INDEXED = {**_LATENT, "index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
_TWO_GROUPS = {"n_group": 2, "topk_group": 1}
_DENSE, _SPARSE = "dense", "sparse"
_FFNS = [_DENSE, _SPARSE, _DENSE, _SPARSE, _SPARSE, _DENSE]
_FULL, _SLIDING = "full_attention", "sliding_attention"
_M3 = "minimax_m3_sparse"
_TYPES = [_FULL, _SLIDING, _SLIDING, _FULL, _FULL, _SLIDING]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {}),
    "qwen2_moe": ("qwen2_moe", {"mlp_only_layers": [1, 2]}),
    "qwen2_moe-steps": (
        "qwen2_moe",
        {
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "layer_types": _TYPES,
            "use_sliding_window": True,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"decoder_sparse_step": 3}),
    "olmoe": ("olmoe", {"clip_qkv": 0.5}),
    "flex_olmo": ("flex_olmo", {}),
    "deepseek_v2": ("deepseek_v2", {**_LATENT, "first_k_dense_replace": 2}),
    "deepseek_v2-plain": (
        "deepseek_v2",
        {
            **_LATENT,
            **_TWO_GROUPS,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**_LATENT, **_TWO_GROUPS, "first_k_dense_replace": 2, "attention_bias": True},
    ),
    "deepseek_v3-plain": (
        "deepseek_v3",
        {**_LATENT, **_TWO_GROUPS, "q_lora_rank": None, "first_k_dense_replace": 0},
    ),
    "deepseek_v32": ("deepseek_v32", {**_INDEXED, **_TWO_GROUPS, "first_k_dense_replace": 2}),
    "gpt_oss": ("gpt_oss", {"layer_types": _TYPES}),
    "granitemoe": ("granitemoe", {"residual_multiplier": 0.3}),
    "granitemoeshared": ("granitemoeshared", {"shared_intermediate_size": 20}),
    "granitemoe_swa": (
        "granitemoe_swa",
        {
            "shared_intermediate_size": 20,
            "layer_rope_theta": [1e4, 0, 1e3, 1e4, 1e4, 0],
            "attention_bias": True,
        },
    ),
    "phimoe": ("phimoe", {"attention_bias": True, "lm_head_bias": True}),
    "dots1": (
        "dots1",
        {
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "max_window_layers": 4,
        },
    ),
    "glm4_moe": ("glm4_moe", {"use_qk_norm": True, "attention_bias": True}),
    "glm4_moe-unnormed": ("glm4_moe", {"first_k_dense_replace": 2}),
    "glm4_moe_lite": ("glm4_moe_lite", {**_LATENT, "mlp_layer_types": _FFNS}),
    "glm_moe_dsa": ("glm_moe_dsa", {**_INDEXED, "first_k_dense_replace": 1}),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_layer_start_index": 2, "use_bias": True}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"moe_topk": [1, 2, 2, 1, 2, 1]}),
    "minimax_m2": ("minimax_m2", {}),
    "jetmoe": ("jetmoe", {"kv_channels": 8, "num_key_value_heads": 2}),
    "dbrx": (
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 0.5},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            "moe_layers": [1, 2, 5],
            "no_rope_layers": [1, 0, 1, 1, 0, 0],
            "attention_chunk_size": 8,
            "intermediate_size_mlp": 40,
            "floor_scale": 4,
        },
    ),
    "cohere2_moe": ("cohere2_moe", {"num_shared_experts": 1, "mlp_layer_types": _FFNS}),
    "exaone_moe": ("exaone_moe", {}),
    "solar_open": ("solar_open", {}),
    "afmoe": ("afmoe", {"num_dense_layers": 2, "mup_enabled": True}),
    "mimo_v2_flash": ("mimo_v2_flash", {"v_head_dim": 6, "layer_types": _TYPES}),
    "aria_text": ("aria_text", {"mlp_bias": True, "attention_bias": True}),
    "hy_v3": ("hy_v3", {}),
    "flint": ("flint", {}),
    "mellum": ("mellum", {"layer_types": _TYPES, "mlp_layer_types": _FFNS}),
    "laguna": (
        "laguna",
        {
            "num_attention_heads_per_layer": [4, 2, 4, 2, 2, 4],
            "layer_types": _TYPES,
            "mlp_layer_types": _FFNS,
        },
    ),
    "kolibri1": ("kolibri1", {}),
    "axk1": ("axk1", {**_LATENT, **_TWO_GROUPS}),
    "axk2": ("axk2", {**_INDEXED, "gated_norm_rank": 4}),
    "minimax_m3_vl_text": (
        "minimax_m3_vl_text",
        {
            "layer_types": [_FULL, _M3, _FULL, _M3, _M3, _FULL],
            "mlp_layer_types": [_SPARSE, _DENSE, _SPARSE, _SPARSE, _SPARSE, _SPARSE],
            "dense_intermediate_size": 40,
            "shared_intermediate_size": 20,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "index_topk_blocks": 2,
        },
    ),
}
