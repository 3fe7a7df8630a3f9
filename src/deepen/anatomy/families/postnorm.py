"""Families with a norm on the way out: what leaves attention and FFN is normed before it is added.

Zero output projections would be an identity there too, but the norm scales any small output up to
size one, so that the first optimizer step would throw the model far off. These blocks are silenced
by the gain of the norm itself, and their output projections stay.
"""

from deepen.anatomy.families.llama import ATTENTION_NORM, attention, gated
from deepen.anatomy.family import Family
from deepen.anatomy.tensors import norm

# Gemma computes (1 + weight) · x: its gain is zero at -1.
GEMMA2 = Family(
    "gemma2",
    {
        "block": {
            **ATTENTION_NORM,
            **attention(writes=False),
            **norm("post_attention_layernorm", "attention_output_norm", silent=-1.0),
            **norm("pre_feedforward_layernorm", "ffn_norm"),
            **gated(writes=False),
            **norm("post_feedforward_layernorm", "ffn_output_norm", silent=-1.0),
        }
    },
    per_layer_lists=("layer_types",),
)

FAMILIES = (GEMMA2,)

REFUSED: dict[str, str] = {}
