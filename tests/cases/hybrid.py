"""Families whose blocks are of several kinds, and those without attention."""

from typing import Any

_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_state": 8}
# The larger epsilon: what is normed inside the mixer can be small, and its norm then chaotic.
_DELTA = {
    "rms_norm_eps": 1e-2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_CONVS = ["conv", "full_attention", "conv", "conv", "full_attention", "conv"]
_LINEAR = ["full_attention" if i in (1, 4) else "linear_attention" for i in range(6)]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Growing by single blocks must leave the rules' first blocks and periods where they are.
    "jamba": (
        "jamba",
        {
            "mamba_d_state": 8,
            "attn_layer_period": 12,
            "attn_layer_offset": 0,
            "expert_layer_period": 12,
            "expert_layer_offset": 0,
        },
    ),
    "jamba-experts": (
        "jamba",
        {
            "attn_layer_period": 12,
            "attn_layer_offset": 0,
            "expert_layer_period": 1,
            "expert_layer_offset": 0,
            "mamba_proj_bias": True,
        },
    ),
    "bamba": (
        "bamba",
        {
            **_MAMBA2,
            "attn_layer_indices": [1, 4],
            "mlp_bias": True,
            "attention_bias": True,
            "mamba_proj_bias": True,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_MAMBA2,
            "shared_intermediate_size": 24,
            "layer_types": _LINEAR,
            "residual_multiplier": 0.5,
        },
    ),
    "granitemoehybrid-dense": (
        "granitemoehybrid",
        {
            **_MAMBA2,
            "num_local_experts": 0,
            "shared_intermediate_size": 24,
            "position_embedding_type": "rope",
            "layer_types": _LINEAR,
            "attention_bias": True,
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **_MAMBA2,
            "mamba_d_ssm": 64,
            "mamba_rms_norm": True,
            "ssm_out_multiplier": 0.5,
            "mlp_multipliers": [0.5, 2.0],
        },
    ),
    "falcon_h1-plain": (
        "falcon_h1",
        {
            **_MAMBA2,
            "mamba_d_ssm": 64,
            "projectors_bias": True,
            "mamba_proj_bias": True,
            "attention_bias": True,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 8,
            "moe_shared_expert_intermediate_size": 24,
            "layers_block_type": [
                "moe",
                "linear_attention",
                "mlp",
                "full_attention",
                "moe",
                "linear_attention",
            ],
        },
    ),
    "nemotron_h-latent": (
        "nemotron_h",
        {
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 8,
            "moe_shared_expert_intermediate_size": 24,
            "moe_latent_size": 16,
            "mlp_bias": True,
            "layers_block_type": [
                "full_attention",
                "moe",
                "linear_attention",
                "moe",
                "linear_attention",
                "moe",
            ],
        },
    ),
    "qwen3_next": ("qwen3_next", {**_DELTA, "layer_types": _LINEAR, "mlp_only_layers": [2]}),
    "qwen3_next-step": ("qwen3_next", {**_DELTA, "decoder_sparse_step": 2, "attention_bias": True}),
    "qwen3_5_text": ("qwen3_5_text", _DELTA),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", _DELTA),
    "olmo_hybrid": ("olmo_hybrid", {"layer_types": _LINEAR}),
    "kimi_linear": (
        "kimi_linear",
        {**_LATENT, "linear_head_dim": 8, "linear_num_heads": 4, "layer_types": _LINEAR},
    ),
    "bailing_hybrid": (
        "bailing_hybrid",
        {**_LATENT, "layer_group_size": 2, "n_group": 1, "topk_group": 1, "num_mtp_layers": 0},
    ),
    "lfm2": ("lfm2", {"full_attn_idxs": [1, 4], "conv_bias": True}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": _CONVS}),
    "lfm3": ("lfm3", {"conv_bias": True}),
    "lfm3-plain": (
        "lfm3",
        {"use_sandwich_norm": False, "use_attention_gate": False, "attention_bias": True},
    ),
    "zaya": (
        "zaya",
        {
            "num_experts_per_tok": 1,
            "router_hidden_size": 16,
            "layer_types": ["hybrid", "hybrid_sliding", "hybrid"] * 2,
        },
    ),
    "mamba": ("mamba", {"state_size": 8, "use_bias": True}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2}),
    "recurrent_gemma": ("recurrent_gemma", {}),
    "rwkv": ("rwkv", {"rescale_every": 0}),
    "dots3_note_text": (
        "dots3_note_text",
        {
            **_LATENT,
            "q_lora_rank": 16,
            "head_dim": 16,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 8,
            "n_group": 1,
            "shared_experts_intermediate_size": 24,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 8,
            "swa_kv_lora_rank": 8,
            "swa_head_dim": 16,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        },
    ),
    "inkling_text": (
        "inkling_text",
        {
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 1,
            "swa_head_dim": 8,
            "rel_extent": 16,
            "d_rel": 4,
            "mlp_layer_types": ["dense"] + ["sparse"] * 5,
            "layer_types": ["hybrid", "hybrid_sliding", "hybrid_sliding"] * 2,
        },
    ),
    "xlstm": (
        "xlstm",
        {"hidden_size": 128, "num_blocks": 6, "autocast_kernel_dtype": "float32"},
    ),
}
