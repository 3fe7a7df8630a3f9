"""LESA: the factors, the predictor, the norms."""

import pytest
import torch
from pydantic import ValidationError

from deepen.base.anatomy import FAMILIES, dissect
from deepen.methods import lesa
from deepen.methods.method import Gap
from deepen.planning.plan import Insert

GENERATOR = torch.Generator().manual_seed(3)


def weights(count=5, out=6, width=10):
    return [torch.randn(out, width, generator=GENERATOR) for _ in range(count)]


@pytest.mark.parametrize(("out", "width"), [(6, 10), (33, 7)])
def test_factors_are_those_of_the_svd(out, width):
    stack = weights(5, out, width)
    basis, inverse = lesa.factor(stack)
    _, s, vt = torch.linalg.svd(torch.cat(stack, 1).double(), full_matrices=False)
    # Singular vectors are unique up to sign, and eigh sorts upwards.
    ours = (inverse.double() @ torch.cat(stack, 1).double()).flip(0)[: len(s)]
    assert torch.allclose(
        (ours * vt).sum(1).abs(), torch.ones(len(s), dtype=torch.float64), atol=1e-4
    )
    assert torch.allclose(basis.double().norm(dim=0).flip(0)[: len(s)], s, rtol=1e-4)
    for weight in stack:
        assert torch.allclose(basis @ (inverse @ weight), weight, atol=1e-4)


def test_directions_that_no_weight_uses_stay_finite():
    stack = [torch.cat([w, torch.zeros(2, 10)]) for w in weights()]
    basis, inverse = lesa.factor(stack)
    assert torch.isfinite(inverse).all()
    assert torch.allclose(basis @ (inverse @ stack[0]), stack[0], atol=1e-4)


def test_the_predictor_learns_a_rule_that_there_is():
    """Where every block is the mean of its neighbours, the prediction is near the mean."""
    start, slope = torch.randn(12, 8, generator=GENERATOR), torch.randn(12, 8, generator=GENERATOR)
    rows = torch.stack([start + i * slope for i in range(8)])
    options = lesa.Options(epochs=200, learning_rate=3e-3)
    network = lesa.train(rows, options, torch.Generator().manual_seed(0))
    middle = network(torch.cat([rows[2], rows[4]], 1))
    assert (middle - rows[3]).norm() / rows[3].norm() < 0.2
    untrained = lesa._network(8, 256, torch.Generator().manual_seed(0))
    assert (untrained(torch.cat([rows[2], rows[4]], 1)) - rows[3]).norm() / rows[3].norm() > 0.5


def test_training_runs_over_every_row_of_every_triplet(monkeypatch):
    seen = []
    true_loss = lesa._loss
    monkeypatch.setattr(lesa, "_loss", lambda p, t, w: seen.append(len(t)) or true_loss(p, t, w))
    rows = torch.stack(weights(5, 50, 4))
    lesa.train(rows, lesa.Options(epochs=2), torch.Generator().manual_seed(0))
    assert seen == [64, 64, 22] * 2  # 3 triplets of 50 rows in batches of 64, twice


def test_loss_is_the_published_one():
    a, b = torch.randn(4, 3, generator=GENERATOR), torch.randn(4, 3, generator=GENERATOR)
    expected = 0.9 * ((a - b) ** 2).mean() + 0.1 * ((a**2).sum().sqrt() - (b**2).sum().sqrt()) ** 2
    assert torch.allclose(lesa._loss(a, b, 0.1), expected)


def blocks(depth=5):
    suffixes = {"input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,)}
    for name in ("q", "k", "v", "o"):
        suffixes[f"self_attn.{name}_proj.weight"] = (8, 8)
        suffixes[f"self_attn.{name}_proj.bias"] = (8,)
    suffixes |= {"mlp.gate_proj.weight": (12, 8), "mlp.up_proj.weight": (12, 8)}
    suffixes["mlp.down_proj.weight"] = (8, 12)
    made = [
        {s: torch.randn(shape, generator=GENERATOR) for s, shape in suffixes.items()}
        for _ in range(depth)
    ]
    shapes = {f"model.layers.{i}.{s}": shape for i in range(depth) for s, shape in suffixes.items()}
    shapes |= {"model.embed_tokens.weight": (9, 8), "model.norm.weight": (8,)}
    return made, dissect(FAMILIES["llama"], {"num_hidden_layers": depth}, shapes).blocks[0]


def fused(options, stack, anatomy, state):
    """Make the block between the stack's blocks 2 and 3."""
    gap = Gap(stack[2], stack[3], anatomy, Insert(2, 3, 0.5), anatomy.block, state)
    return dict(lesa.fuse(options, gap))


@pytest.mark.parametrize("norms", ["first", "mean"])
def test_norms_and_biases(norms):
    stack, anatomy = blocks()
    options = lesa.Options(epochs=1, norms=norms)
    state = lesa.learn(options, stack, anatomy, 0, lambda *_: None)
    new = fused(options, stack, anatomy, state)
    gain, bias = "input_layernorm.weight", "self_attn.q_proj.bias"
    mean = (stack[2][gain] + stack[3][gain]) / 2
    assert torch.equal(new[gain], stack[0][gain] if norms == "first" else mean)
    assert torch.equal(new[bias], (stack[2][bias] + stack[3][bias]) / 2)


def test_the_seed_decides_and_nothing_else():
    stack, anatomy = blocks()
    options = lesa.Options(epochs=1)
    states = [lesa.learn(options, stack, anatomy, seed, lambda *_: None) for seed in (0, 0, 1)]
    made = [fused(options, stack, anatomy, state) for state in states]
    weight = "mlp.up_proj.weight"
    assert torch.equal(made[0][weight], made[1][weight])
    assert not torch.equal(made[0][weight], made[2][weight])


def test_options_are_checked():
    with pytest.raises(ValidationError):
        lesa.Options(epochs=0)
