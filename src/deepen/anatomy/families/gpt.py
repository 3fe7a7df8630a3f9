"""GPT-style families: LayerNorms with biases, plain FFNs of two matrices, fused projections."""

from deepen.anatomy.family import Config, Family, Heads
from deepen.anatomy.tensors import buffers, fused, linear, norm

_QUERY_KEY_VALUE = {"query": "query", "key": "key_value", "value": "value"}


def _learned_heads(config: Config) -> Heads:
    """Read GPT-2's heads: positions are learned embeddings, and no RoPE turns anything."""
    heads, width = config["n_head"], config["n_embd"] // config["n_head"]
    return Heads(heads, heads, width, width)


GPT2 = Family(
    "gpt2",
    {
        "block": {
            **norm("ln_1", "attention_norm"),
            **fused("attn.c_attn", _QUERY_KEY_VALUE, transposed=True),
            **linear("attn.c_proj", "attention_output", "residual", "attended", transposed=True),
            **norm("ln_2", "ffn_norm"),
            **linear("mlp.c_fc", "up", "ffn", "residual", transposed=True),
            **linear("mlp.c_proj", "ffn_output", "residual", "ffn", transposed=True),
            **buffers("attn.bias", "attn.masked_bias"),
        }
    },
    embeddings="transformer.wte.weight",
    outside=("transformer.wpe.weight",),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    block_prefix="transformer.h.",
    depth_field="n_layer",
    heads=_learned_heads,
)

FAMILIES = (GPT2,)

REFUSED: dict[str, str] = {}
