"""GPT-style families."""

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt-sw3": ("gpt-sw3", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode-multi-head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neo": (
        "gpt_neo",
        {"attention_types": [[["global", "local"], 2], [["local"], 2]], "window_size": 4},
    ),
    "gptj": ("gptj", {}),
    "codegen": ("codegen", {"tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": (
        "gpt_neox",
        {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "falcon": ("falcon", {"bias": True}),
    "falcon-grouped": ("falcon", {"new_decoder_architecture": True}),
    "falcon-grouped-one-norm": (
        "falcon",
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-alibi": (
        "falcon",
        {
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
            "num_kv_heads": 4,
        },
    ),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {"attn_config": {"clip_qkv": 0.5}}),
    "opt": ("opt", {}),
    "opt-projected": ("opt", {"word_embed_proj_dim": 16, "enable_bias": False}),
    "xglm": ("xglm", {"attention_heads": 4}),
    "biogpt": ("biogpt", {}),
    "ctrl": ("ctrl", {"dff": 48}),
    "starcoder2": ("starcoder2", {}),
    "nemotron": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "phi": ("phi", {}),
    "phi-normed": ("phi", {"qk_layernorm": True}),
    "persimmon": ("persimmon", {}),
    "modernbert-decoder": (
        "modernbert-decoder",
        {
            "pad_token_id": 0,
            "bos_token_id": 1,
            "norm_bias": True,
            "mlp_bias": True,
            "local_attention": 8,
        },
    ),
}
