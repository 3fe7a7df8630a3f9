"""Plain, slow references that the fast code is held to; nothing in here uses that code's parts.

They are written from the papers' equations, one line of code for one line of mathematics, and are
only fit for small sizes.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import ot
import torch
from torch import Tensor

NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def random_block(
    seed: int,
    hidden: int = 40,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 6,
    ffn: int = 57,
    std: float = 0.02,
    biases: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of one Llama block with normal weights; norm gains are around 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    block = {name: 1 + 0.1 * torch.randn(hidden, generator=generator) for name in NORMS}
    for name, shape in rows.items():
        block[f"{name}.weight"] = std * torch.randn(shape, generator=generator)
        if biases:
            block[f"{name}.bias"] = std * torch.randn(shape[0], generator=generator)
    return block


def released_opt_deus_block(
    below: dict[str, Tensor], above: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the new block between two Llama blocks as the released OpT-DeUS code computes it.

    Per tensor, in the order of the forward pass: push the input side of the lower neighbour by the
    plan of what came before, find the plan of its rows, push them by it as POT returns it, and
    average with the upper neighbour. What writes into the residual stream becomes zero.
    """
    lower = {name: tensor.float() for name, tensor in below.items()}
    upper = {name: tensor.float() for name, tensor in above.items()}
    new = {}

    for name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"):
        T_out = released_plan(lower[name], upper[name])
        new[name] = (T_out.T @ lower[name] + upper[name]) / 2

    T_o = released_plan(lower["self_attn.o_proj.weight"], upper["self_attn.o_proj.weight"])
    new["self_attn.o_proj.weight"] = torch.zeros_like(upper["self_attn.o_proj.weight"])

    name = "input_layernorm.weight"
    new[name] = (lower[name] + upper[name]) / 2

    name = "post_attention_layernorm.weight"
    T_in = 0.5 * T_o + 0.5 * torch.eye(len(T_o))
    new[name] = (lower[name] @ T_in + upper[name]) / 2

    for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        pushed = lower[name] @ T_o
        T_out = released_plan(pushed, upper[name])
        new[name] = (T_out.T @ pushed + upper[name]) / 2

    new["mlp.down_proj.weight"] = torch.zeros_like(upper["mlp.down_proj.weight"])
    return new


def released_plan(rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """Return POT's plan ``[n, m]`` between rows ``[n, d]`` and ``[m, d]``; it sums to 1."""
    M = torch.cdist(rows_a, rows_b)
    a = torch.full((len(rows_a),), 1 / len(rows_a))
    b = torch.full((len(rows_b),), 1 / len(rows_b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT tells when it underflows or runs out of iterations
        return ot.sinkhorn(a, b, M, 0.06, numItermax=10000)


def released_opt_deus_model(base: Path, out: Path, new_layers: int) -> None:
    """Grow a Llama checkpoint as the released OpT-DeUS code does: two whole models in float32.

    The new blocks go into the topmost gaps, one each; the result is saved in bfloat16.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LlamaConfig.from_pretrained(base)
    config.num_hidden_layers += new_layers
    large = LlamaForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    blocks = [layer.state_dict() for layer in small.model.layers]
    first_gap = len(blocks) - 1 - new_layers
    stack = blocks[: first_gap + 1]
    for gap in range(first_gap, len(blocks) - 1):
        stack += [released_opt_deus_block(blocks[gap], blocks[gap + 1]), blocks[gap + 1]]
    for layer, tensors in zip(large.model.layers, stack, strict=True):
        layer.load_state_dict(tensors)
    large.to(torch.bfloat16).save_pretrained(out)


def loop_sinkhorn_log(cost: np.ndarray, reg: float, iterations: int) -> np.ndarray:
    """Return the entropic plan ``[n, m]`` with uniform marginals, by loops over potentials.

    f_i ← reg·(-log n - log Σ_j exp((g_j - C_ij) / reg)), the same for g, T_ij =
    exp((f_i + g_j - C_ij) / reg). The columns come last, so that they sum to 1/m.
    """
    cost = np.asarray(cost, dtype=np.float64)
    n, m = cost.shape
    f, g = [0.0] * n, [0.0] * m
    for _ in range(iterations):
        for i in range(n):
            f[i] = reg * (
                -math.log(n) - _log_sum_exp([(g[j] - cost[i, j]) / reg for j in range(m)])
            )
        for j in range(m):
            g[j] = reg * (
                -math.log(m) - _log_sum_exp([(f[i] - cost[i, j]) / reg for i in range(n)])
            )
    plan = [[math.exp((f[i] + g[j] - cost[i, j]) / reg) for j in range(m)] for i in range(n)]
    return np.array(plan)


def _log_sum_exp(values: list[float]) -> float:
    """Return log Σ exp(value) without overflow."""
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def loop_distances(rows_a: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
    """Return all Euclidean distances between rows in float64, one pair at a time."""
    rows_a, rows_b = rows_a.astype(np.float64), rows_b.astype(np.float64)
    return np.array([[math.sqrt(sum((a - b) ** 2)) for b in rows_b] for a in rows_a])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖expected‖; where ``expected`` is zero, ‖actual‖."""
    scale = float(expected.double().norm()) or 1.0
    return float((actual.double() - expected.double()).norm()) / scale
