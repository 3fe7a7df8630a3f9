"""Attention matching: scrambled copies are recovered, functions kept, zeros survived."""

import math
from dataclasses import fields, replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import oracles
from deepen.common.errors import DeepenError
from deepen.transport import cost, sinkhorn
from deepen.transport.heads import Attention, Rotary, apply_attention, match_attention
from deepen.transport.neurons import Ffn, apply_ffn, match_ffn

HIDDEN, HEAD_DIM, VALUE_DIM = 37, 6, 5
GROUPINGS = {"gqa": (6, 2), "mqa": (4, 1), "mha": (5, 5)}
ROTARIES = {
    "rope": Rotary(6),
    "adjacent": Rotary(6, "adjacent"),
    "partial": Rotary(4),
    "partial adjacent": Rotary(2, "adjacent"),
    "no rope": Rotary(),
    "normed": Rotary(6, normed=True),
    "alibi": Rotary(fixed_heads=True),
}
SYMMETRIES = ("groups", "heads", "query and key", "value and output", "all")

every_rotary = pytest.mark.parametrize("rotary", ROTARIES.values(), ids=ROTARIES)
every_grouping = pytest.mark.parametrize("grouping", GROUPINGS.values(), ids=GROUPINGS)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _attention(seed, rotary, grouping=(6, 2), *, biased=False, dtype=torch.float32):
    heads, groups = grouping
    generator = _generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = {
        "query": heads * HEAD_DIM,
        "key": groups * HEAD_DIM,
        "value": groups * VALUE_DIM,
    }
    weights = {name: normal(n, HIDDEN) for name, n in rows.items()}
    biases = {f"{name}_bias": normal(n) for name, n in rows.items()} if biased else {}
    output = normal(HIDDEN, heads * VALUE_DIM)
    return Attention(
        **weights, **biases, output=output, heads=heads, kv_heads=groups, rotary=rotary
    )


def _planes(rotary):
    half = rotary.dims // 2
    if rotary.planes == "half":
        return [(p, p + half) for p in range(half)]
    return [(2 * p, 2 * p + 1) for p in range(half)]


def _turned(head, position, rotary):
    """Rotate plane p of one head's vector by position · 10000^(-2p / dims)."""
    head = head.clone()
    for p, (i, j) in enumerate(_planes(rotary)):
        angle = position * 10000 ** (-2 * p / rotary.dims)
        one, other = head[i].clone(), head[j].clone()
        head[i] = math.cos(angle) * one - math.sin(angle) * other
        head[j] = math.sin(angle) * one + math.cos(angle) * other
    return head


def _forward(attention, x):
    """Compute causal attention ``[tokens, hidden]`` head by head and token by token."""
    a, rotary = attention, attention.rotary
    gain = 1 + 0.5 * torch.rand(2, HEAD_DIM, generator=_generator(99), dtype=x.dtype)

    def heads(weight, bias, parts):
        rows = x @ weight.T if bias is None else x @ weight.T + bias
        return rows.unflatten(1, (parts, -1))

    def place(head, position, gain):
        if rotary.normed:
            head = head / (head.square().mean() + 1e-6).sqrt() * gain
        return _turned(head, position, rotary)

    query, key, value = (
        heads(getattr(a, name), getattr(a, f"{name}_bias"), parts)
        for name, parts in (("query", a.heads), ("key", a.kv_heads), ("value", a.kv_heads))
    )
    out = torch.zeros_like(x)
    for h in range(a.heads):
        k = h // (a.heads // a.kv_heads)
        columns = a.output[:, h * VALUE_DIM : (h + 1) * VALUE_DIM]
        for t in range(len(x)):
            asked = place(query[t, h], t, gain[0])
            logits = torch.stack([asked @ place(key[s, k], s, gain[1]) for s in range(t + 1)])
            if rotary.fixed_heads:
                logits += 2.0 ** -(h + 1) * (torch.arange(t + 1) - t)
            out[t] += columns @ ((logits / HEAD_DIM**0.5).softmax(0) @ value[: t + 1, k])
    return out


def _invertible(size, generator):
    """Return a matrix with singular values between ½ and 2."""
    left, right = torch.linalg.qr(
        torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    )[0]
    return left * (4 ** torch.rand(size, generator=generator, dtype=torch.float64) / 2) @ right


def _key_freedom(rotary, generator):
    """Return a map of keys that queries can undo: planes turned and scaled, GL elsewhere."""
    whole = torch.eye(HEAD_DIM, dtype=torch.float64)
    if rotary.normed:
        return whole
    whole[rotary.dims :, rotary.dims :] = _invertible(HEAD_DIM - rotary.dims, generator)
    for i, j in _planes(rotary):
        angle, scale = torch.rand(2, generator=generator).mul(torch.tensor([6.28, 3])).tolist()
        c, s = math.cos(angle), math.sin(angle)
        whole[[i, i, j, j], [i, j, i, j]] = (0.3 + scale) * torch.tensor([c, -s, s, c]).double()
    return whole


def _scrambled(attention, symmetry="all", seed=9):
    """Apply allowed symmetries, head by head."""
    a, generator = attention, _generator(seed)
    per_group = a.heads // a.kv_heads
    movable = not a.rotary.fixed_heads

    def order(n, name):
        moves = symmetry in (name, "all") and movable
        return torch.randperm(n, generator=generator).tolist() if moves else list(range(n))

    parts = {
        name: getattr(a, name).double().unflatten(0, (n, -1))
        for name, n in (("query", a.heads), ("key", a.kv_heads), ("value", a.kv_heads))
    }
    for name in tuple(parts):
        bias = getattr(a, f"{name}_bias")
        if bias is not None:
            bias = bias.double().view(len(parts[name]), -1, 1)
            parts[name] = torch.cat([parts[name], bias], 2)
    parts["output"] = a.output.T.double().unflatten(0, (a.heads, -1))
    new = {name: [] for name in parts}
    for k in order(a.kv_heads, "groups"):
        keys = values = None
        if symmetry in ("query and key", "all"):
            keys = _key_freedom(a.rotary, generator)
        if symmetry in ("value and output", "all"):
            values = _invertible(VALUE_DIM, generator)
        keys = torch.eye(HEAD_DIM, dtype=torch.float64) if keys is None else keys
        values = torch.eye(VALUE_DIM, dtype=torch.float64) if values is None else values
        new["key"].append(keys @ parts["key"][k])
        new["value"].append(values @ parts["value"][k])
        for h in order(per_group, "heads"):
            new["query"].append(torch.linalg.inv(keys).T @ parts["query"][k * per_group + h])
            new["output"].append(torch.linalg.inv(values).T @ parts["output"][k * per_group + h])
    dtype, changed = a.query.dtype, {}
    for name, rows in new.items():
        whole = torch.cat(rows).to(dtype)
        changed[name] = whole.T if name == "output" else whole[:, :HIDDEN]
        if whole.shape[1] > HIDDEN:
            changed[f"{name}_bias"] = whole[:, HIDDEN]
    return replace(a, **changed)


def _tensors(attention):
    found = {field.name: getattr(attention, field.name) for field in fields(Attention)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _largest_difference(one, other):
    tensors = _tensors(one)
    return max(oracles.relative_error(tensors[k], v) for k, v in _tensors(other).items())


def _assert_same_function(one, other, tolerance=1e-10):
    x = torch.randn(7, HIDDEN, generator=_generator(3), dtype=torch.float64)
    expected = _forward(other, x)
    assert (_forward(one, x) - expected).abs().max() <= tolerance * expected.abs().max()


@every_rotary
def test_the_scrambling_of_these_tests_is_allowed(rotary):
    a = _attention(1, rotary, biased=True, dtype=torch.float64)
    _assert_same_function(_scrambled(a), a)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@every_grouping
@every_rotary
def test_a_scrambled_copy_is_recovered(rotary, grouping, symmetry, biased):
    a = _attention(1, rotary, grouping, biased=biased)
    b = _scrambled(a, symmetry)
    aligned = apply_attention(match_attention(a, b), a)
    assert _largest_difference(aligned, b) < 1e-5
    if symmetry == "all":
        assert _largest_difference(a, b) > 0.1, "nothing was scrambled"


@every_grouping
@every_rotary
def test_aligning_to_another_attention_keeps_the_function(rotary, grouping):
    a, b = (_attention(s, rotary, grouping, biased=True, dtype=torch.float64) for s in (1, 2))
    aligned = apply_attention(match_attention(a, b), a)
    _assert_same_function(aligned, a)
    assert _largest_difference(aligned, a) > 0.1


def test_a_match_of_folded_weights_moves_the_originals():
    rotary = Rotary(4)
    a, b = (_attention(s, rotary, dtype=torch.float64) for s in (1, 2))
    gain = 1 + torch.rand(2, HIDDEN, generator=_generator(4), dtype=torch.float64)
    folded = [
        replace(x, **{name: getattr(x, name) * g for name in ("query", "key", "value")})
        for x, g in zip((a, b), gain, strict=True)
    ]
    match = match_attention(*folded)
    _assert_same_function(apply_attention(match, a), a)
    again = apply_attention(match, folded[0])
    assert oracles.relative_error(again.query, apply_attention(match, a).query * gain[0]) < 1e-12


@every_rotary
def test_the_result_does_not_depend_on_how_the_lower_block_is_written(rotary):
    a, b = (_attention(s, rotary) for s in (1, 2))
    aligned, other = (apply_attention(match_attention(x, b), x) for x in (a, _scrambled(a)))
    assert _largest_difference(other, aligned) < 1e-4


@every_grouping
@every_rotary
def test_a_noisy_scrambled_copy_is_recovered_up_to_the_noise(rotary, grouping):
    a = _attention(1, rotary, grouping)
    noisy = {
        k: v + 0.05 * torch.randn(v.shape, generator=_generator(5)) for k, v in _tensors(a).items()
    }
    b = replace(a, **noisy)
    aligned = apply_attention(match_attention(_scrambled(a), b), _scrambled(a))
    assert _largest_difference(aligned, b) < 0.12


@every_grouping
@every_rotary
def test_similarities_are_cosines_of_whole_products(rotary, grouping):
    a, b = (_attention(s, rotary, grouping, biased=True, dtype=torch.float64) for s in (1, 2))

    def products(x, h):
        k = h // (x.heads // x.kv_heads)
        query, key, value = (
            torch.column_stack([getattr(x, n), getattr(x, f"{n}_bias")]).unflatten(0, (parts, -1))[
                i
            ]
            for n, parts, i in (
                ("query", x.heads, h),
                ("key", x.kv_heads, k),
                ("value", x.kv_heads, k),
            )
        )
        still = range(rotary.dims, HEAD_DIM)
        asked = [query[still].T @ key[still]]
        for i, j in _planes(rotary):
            asked.append(torch.outer(query[i], key[i]) + torch.outer(query[j], key[j]))
            asked.append(torch.outer(query[j], key[i]) - torch.outer(query[i], key[j]))
        output = x.output[:, h * VALUE_DIM : (h + 1) * VALUE_DIM]
        return torch.stack(asked).flatten(), (output @ value).flatten()

    found = match_attention(a, b).similarity
    for h in range(a.heads):
        for g in range(b.heads):
            pairs = zip(products(a, h), products(b, g), strict=True)
            expected = sum(float(x @ y / x.norm() / y.norm()) for x, y in pairs) / 2
            assert found[h, g] == pytest.approx(expected, abs=1e-5)


@every_rotary
def test_similarities_do_not_depend_on_bases_inside_heads(rotary):
    a, b = (_attention(s, rotary) for s in (1, 2))
    other = _scrambled(_scrambled(a, "query and key"), "value and output")
    found, again = (match_attention(x, b).similarity for x in (a, other))
    torch.testing.assert_close(again, found, rtol=0, atol=1e-5)


def test_heads_are_assigned_inside_the_groups_that_fit_best():
    a, b = (_attention(s, Rotary(6), (6, 2)) for s in (1, 2))
    similarity = torch.zeros(6, 6)
    # The largest single value would tear group 0 apart: heads move with their group.
    similarity[0, 0] = 0.9
    similarity[[3, 4, 5], [1, 2, 0]] = 0.5
    similarity[[0, 1, 2], [5, 3, 4]] = 0.5
    match = match_attention(a, b, similarity=similarity)
    assert match.groups.tolist() == [1, 0]
    assert match.heads.tolist() == [5, 3, 4, 1, 2, 0]
    _assert_same_function(
        *(
            replace(x, **{k: v.double() for k, v in _tensors(x).items()})
            for x in (apply_attention(match, a), a)
        ),
        tolerance=1e-5,
    )


def test_heads_with_positions_of_their_own_stay():
    rotary = ROTARIES["alibi"]
    a, b = (_attention(s, rotary) for s in (1, 2))
    match = match_attention(a, b)
    assert torch.equal(match.groups, torch.arange(2))
    assert torch.equal(match.heads, torch.arange(6))


NOTHING = {
    "below silent": (("output",), ()),
    "above silent": ((), ("output",)),
    "both silent": (("output",), ("output",)),
    "no query": (("query", "query_bias"), ("query", "query_bias")),
    "below empty": (("query", "key", "value", "output"), ()),
}


@pytest.mark.parametrize("case", NOTHING)
@every_rotary
def test_zeros_determine_nothing_and_break_nothing(case, rotary):
    a, b = (_attention(s, rotary, biased=True, dtype=torch.float64) for s in (1, 2))
    for attention, names in zip((a, b), NOTHING[case], strict=True):
        for name in names:
            getattr(attention, name).zero_()
    aligned = apply_attention(match_attention(a, b), a)
    assert all(torch.isfinite(tensor).all() for tensor in _tensors(aligned).values())
    if case != "below silent":
        _assert_same_function(aligned, a)
    if not rotary.normed:  # scales that nothing determines stay 1
        for name in ("value",) if "silent" in case else ():
            assert getattr(aligned, name).norm() == pytest.approx(float(getattr(a, name).norm()))


@every_rotary
def test_empty_attentions_are_left_as_they_are(rotary):
    a, b = (_attention(s, rotary, biased=True) for s in (1, 2))
    for tensor in _tensors(b).values():
        tensor.zero_()
    match = match_attention(a, b)
    aligned = apply_attention(match, a)
    assert torch.equal(match.heads, torch.arange(6))
    for name, tensor in _tensors(aligned).items():
        assert torch.equal(tensor, getattr(a, name))


@pytest.mark.parametrize("rank", [1, 3])
@every_rotary
def test_rank_deficient_heads_keep_the_function(rotary, rank):
    a, b = (_attention(s, rotary, dtype=torch.float64) for s in (1, 2))
    a.value.unflatten(0, (2, -1))[:, rank:] = 0
    a.key.unflatten(0, (2, -1))[1, 1:] = 0
    b.output.unflatten(1, (6, -1))[:, :, : VALUE_DIM - rank] = 0
    aligned = apply_attention(match_attention(a, b), a)
    assert all(tensor.abs().max() < 100 for tensor in _tensors(aligned).values())
    _assert_same_function(aligned, a)


def test_bfloat16_weights_are_given_back_in_float32():
    a = _attention(1, Rotary(4), biased=True, dtype=torch.bfloat16)
    aligned = apply_attention(match_attention(a, a), a)
    for name, tensor in _tensors(aligned).items():
        assert tensor.dtype == torch.float32
        assert oracles.relative_error(tensor, getattr(a, name)) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(30, HIDDEN)}, "attentions of two blocks differ in query;"),
        ({"value_bias": torch.zeros(10)}, "attentions of two blocks differ in value_bias;"),
        ({"rotary": Rotary(2)}, "attentions of two blocks differ in rotary;"),
    ],
)
def test_attentions_of_different_kinds_are_refused(change, message):
    a = _attention(1, Rotary(6))
    with pytest.raises(DeepenError, match=message):
        match_attention(a, replace(a, **change))


@pytest.mark.parametrize("change", [{"heads": 4}, {"kv_heads": 4}, {"rotary": Rotary(8)}])
def test_sizes_that_do_not_belong_together_are_refused(change):
    a = replace(_attention(1, Rotary(6)), **change)
    with pytest.raises(DeepenError, match="does not divide into"):
        match_attention(a, a)


def test_weights_that_are_not_finite_are_refused():
    a, b = _attention(1, Rotary(6)), _attention(2, Rotary(6))
    a.key[0, 0] = float("nan")
    with pytest.raises(DeepenError, match="have a key that is infinite or not a number"):
        match_attention(a, b)


def test_a_similarity_of_the_wrong_size_is_refused():
    a = _attention(1, Rotary(6))
    with pytest.raises(DeepenError, match=r"\[2, 2\] does not fit 6 heads"):
        match_attention(a, a, similarity=torch.zeros(2, 2))


def _random_model(kind, **settings):
    """Build a tiny causal model in float64, every parameter perturbed."""
    config = CONFIG_MAPPING[kind](vocab_size=64, max_position_embeddings=32, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


SIZES = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMAS = {
    "llama": (
        "llama",
        {**SIZES, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
        Rotary(6),
    ),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 6}, Rotary(6, normed=True)),
    "stablelm": ("stablelm", {**SIZES, "partial_rotary_factor": 2 / 3}, Rotary(4)),
}
LLAMA_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


def _logits(model):
    with torch.no_grad():
        return model(torch.arange(12)[None] * 5 % 64).logits


def _read(module, rotary, names=LLAMA_NAMES, gain=None):
    """Read an attention module of transformers, a norm's gain folded in if given."""
    layers = [getattr(module, name) for name in names]
    gain = 1 if gain is None else gain
    query, key, value = (layer.weight.detach() * gain for layer in layers[:3])
    biases = [None if layer.bias is None else layer.bias.detach() for layer in layers[:3]]
    return Attention(
        query, key, value, layers[3].weight.detach(), 4, len(key) // 6, rotary, *biases
    )


def _put(module, weights, names=LLAMA_NAMES):
    with torch.no_grad():
        for name, field in zip(names, ("query", "key", "value", "output"), strict=True):
            layer = getattr(module, name)
            layer.weight.copy_(getattr(weights, field))
            if field != "output" and layer.bias is not None:
                layer.bias.copy_(getattr(weights, f"{field}_bias"))


def _read_ffn(module, gain=None):
    gain = 1 if gain is None else gain
    gate, up, down = (getattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    biases = [None if layer.bias is None else layer.bias.detach() for layer in (gate, up)]
    weights = gate.weight.detach() * gain, up.weight.detach() * gain, down.weight.detach()
    return Ffn(*weights, *biases)


def _put_ffn(module, weights):
    with torch.no_grad():
        for name in ("gate", "up", "down"):
            layer = getattr(module, f"{name}_proj")
            layer.weight.copy_(getattr(weights, name))
            if name != "down" and layer.bias is not None:
                layer.bias.copy_(getattr(weights, f"{name}_bias"))


@pytest.mark.parametrize("kind", LLAMAS)
def test_a_real_block_aligned_to_the_next_computes_the_same(kind):
    family, settings, rotary = LLAMAS[kind]
    model = _random_model(family, **settings)
    before = _logits(model)
    a, b = model.model.layers
    gains = [
        (block.input_layernorm.weight.detach(), block.post_attention_layernorm.weight.detach())
        for block in (a, b)
    ]
    heads = match_attention(
        *(_read(x.self_attn, rotary, gain=g[0]) for x, g in zip((a, b), gains, strict=True))
    )
    neurons = match_ffn(*(_read_ffn(x.mlp, gain=g[1]) for x, g in zip((a, b), gains, strict=True)))
    original = a.self_attn.q_proj.weight.detach().clone()
    _put(a.self_attn, apply_attention(heads, _read(a.self_attn, rotary)))
    _put_ffn(a.mlp, apply_ffn(neurons, _read_ffn(a.mlp)))
    assert oracles.relative_error(a.self_attn.q_proj.weight.detach(), original) > 0.1
    assert (_logits(model) - before).abs().max() < 1e-10 * before.abs().max()


OUT_PROJ = (*LLAMA_NAMES[:3], "out_proj")
GPTJ = {"n_embd": 24, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
OPT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 37}
OTHERS = {
    "glm": (
        {**SIZES, "head_dim": 6, "partial_rotary_factor": 2 / 3, "pad_token_id": 0},
        Rotary(4, "adjacent"),
        LLAMA_NAMES,
        1e-10,
    ),
    # GPT-J computes its logits of attention in float32 whatever the weights are.
    "gptj": ({**GPTJ, "rotary_dim": 4}, Rotary(4, "adjacent"), OUT_PROJ, 1e-6),
    "opt": ({**OPT, "word_embed_proj_dim": 24}, Rotary(), OUT_PROJ, 1e-10),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_real_attentions_of_other_kinds_compute_the_same(kind):
    settings, rotary, names, tolerance = OTHERS[kind]
    model = _random_model(kind, **settings)
    before = _logits(model)
    blocks = model.transformer.h if kind == "gptj" else model.get_decoder().layers
    a, b = (block.attn if kind == "gptj" else block.self_attn for block in blocks)
    weights = _read(a, rotary, names)
    aligned = apply_attention(match_attention(weights, _read(b, rotary, names)), weights)
    assert oracles.relative_error(aligned.query, weights.query) > 0.1
    _put(a, aligned, names)
    assert (_logits(model) - before).abs().max() < tolerance * before.abs().max()


def _row_maps(a, b, fidelity):
    """Return MᵀA for the rows of a weight, as `published` and `normalised` align them."""
    distances = cost.euclidean(a, b)
    if fidelity == "published":
        return sinkhorn.pot(distances, 0.06, 1000).plan.T
    distances = cost.in_units_of_spread(distances)
    return len(a) * sinkhorn.stabilised(distances, 0.06, 1000).plan.T


@pytest.mark.parametrize("fidelity", ["published", "normalised"])
def test_alignment_row_by_row_does_not_keep_the_function(fidelity):
    model = _random_model("llama", **SIZES | {"num_key_value_heads": 4}, head_dim=6)
    before = _logits(model)
    a, b = model.model.layers
    with torch.no_grad():
        maps = {}
        for part, name in (
            *(("self_attn", name) for name in LLAMA_NAMES[:3]),
            *(("mlp", f"{name}_proj") for name in ("gate", "up")),
        ):
            below, above = (getattr(getattr(x, part), name).weight for x in (a, b))
            maps[name] = _row_maps(below.float(), above.float(), fidelity).double()
            below.copy_(maps[name] @ below)
        # Even if, other than in the paper, the outputs take their inputs from where they went.
        for layer, name in ((a.self_attn.o_proj, "v_proj"), (a.mlp.down_proj, "up_proj")):
            layer.weight.copy_(layer.weight @ maps[name].T)
    assert oracles.relative_error(_logits(model), before) > 0.05
