"""OpT-DeUS: the published numbers against the oracle, and the properties of the algorithm."""

import json
import warnings

import pytest
import torch

import deepen
import gaps
import oracles
from deepen.alignment.match import Matcher
from deepen.common.errors import DeepenError
from deepen.methods.method import parse_options
from deepen.methods.opt_deus import METHOD, Options
from deepen.transport import sinkhorn

HIDDEN_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")
NORMALISED, PUBLISHED = Options(fidelity="normalised"), Options(fidelity="published")


def _fuse(below, above, options=NORMALISED, t=0.5):
    return gaps.between(METHOD, options, below, above, t)


def _published(below, above):
    with warnings.catch_warnings():
        # POT's threshold lies at float32's noise floor, and whether it is met is luck.
        warnings.simplefilter("ignore", sinkhorn.TransportWarning)
        return _fuse(below, above, PUBLISHED)


def _rows_moved(block, name, order):
    """Return the block with the rows of one linear layer, bias included, in another order."""
    return block | {key: block[key][order] for key in block if key.startswith(f"{name}.")}


def _order(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def _noisy(block, share):
    other = oracles.random_block(99)
    return {name: tensor + share * other[name] for name, tensor in block.items()}


PARENTS = {
    "unrelated, grouped queries": (oracles.random_block(1), oracles.random_block(2)),
    "noisy twins of sharp plans": (
        oracles.random_block(3, std=0.1),
        _noisy(oracles.random_block(3, std=0.1), share=0.5),
    ),
    "one KV head, narrow": (
        oracles.random_block(4, hidden=13, heads=3, kv_heads=1, head_dim=2, ffn=29),
        oracles.random_block(5, hidden=13, heads=3, kv_heads=1, head_dim=2, ffn=29),
    ),
}


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_published_equals_the_released_code(parents):
    expected = oracles.released_opt_deus_block(*parents)
    new = _published(*parents)
    assert new.keys() == expected.keys()
    for name, tensor in expected.items():
        assert oracles.relative_error(new[name], tensor) <= 1e-5, name


def test_published_says_that_the_kernel_vanished():
    below, above = oracles.random_block(1, std=2.0), oracles.random_block(2, std=2.0)
    with pytest.warns(sinkhorn.TransportWarning, match="published"):
        new = _fuse(below, above, PUBLISHED)
    expected = oracles.released_opt_deus_block(below, above)
    for name, tensor in expected.items():
        assert oracles.relative_error(new[name], tensor) <= 1e-5, name
    for name in HIDDEN_ROWS:  # nothing is left of the lower neighbour
        half = above[f"{name}.weight"] / 2
        assert oracles.relative_error(new[f"{name}.weight"], half) < 1e-6


def test_normalised_works_where_the_published_kernel_vanishes():
    sizes = {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn": 160, "std": 5.0}
    below, above = oracles.random_block(1, **sizes), oracles.random_block(2, **sizes)
    q = "self_attn.q_proj.weight"
    assert not torch.exp(-torch.cdist(below[q], above[q]) / 0.06).any()
    for name, tensor in _fuse(below, above).items():  # a warning would be an error
        assert torch.isfinite(tensor).all(), name
        if not name.startswith(OUTPUTS):
            assert tensor.norm() > 0.55 * above[name].norm(), name


@pytest.mark.parametrize("options", [NORMALISED, PUBLISHED], ids=lambda o: o.fidelity)
def test_outputs_are_silent_and_shapes_kept(options):
    below, above = (oracles.random_block(seed, biases=True) for seed in (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sinkhorn.TransportWarning)
        new = _fuse(below, above, options.model_copy(update={"max_iterations": 200}))
    assert {name: t.shape for name, t in new.items()} == {n: t.shape for n, t in above.items()}
    for name, tensor in new.items():
        assert tensor.any() != name.startswith(OUTPUTS), name


def test_parents_are_left_alone():
    below, above = oracles.random_block(1, biases=True), oracles.random_block(2, biases=True)
    before = [{name: t.clone() for name, t in block.items()} for block in (below, above)]
    _fuse(below, above)
    for block, copy in zip((below, above), before, strict=True):
        assert all(torch.equal(block[name], copy[name]) for name in block)


@pytest.mark.parametrize("factor", [2.0**-9, 3.7, 1000.0])
def test_the_scale_of_both_parents_does_not_change_the_plan(factor):
    below, above = oracles.random_block(1), oracles.random_block(2)
    plain = _fuse(below, above)
    scaled = _fuse(*({name: factor * t for name, t in b.items()} for b in (below, above)))
    for name, tensor in plain.items():
        assert oracles.relative_error(scaled[name] / factor, tensor) < 1e-4, name


def test_the_push_averages_rows_and_loses_none():
    # A constant is pushed onto itself if and only if the weights of each average sum to one.
    below, above = oracles.random_block(1, biases=True), oracles.random_block(2, biases=True)
    biases = [f"{name}.bias" for name in (*HIDDEN_ROWS, "mlp.gate_proj", "mlp.up_proj")]
    below |= {name: torch.full_like(below[name], 3.0) for name in biases}
    aligned = _fuse(below, above, t=0.0)
    for name in biases:
        torch.testing.assert_close(aligned[name], below[name])


@pytest.mark.parametrize("name", HIDDEN_ROWS)
def test_a_planted_order_of_rows_is_recovered(name):
    above = oracles.random_block(1, biases=True)
    order = _order(len(above[f"{name}.bias"]))
    aligned = _fuse(_rows_moved(above, name, order), above, t=0.0)
    # Biases are moved with the rows of their weight, and do not take part in the cost.
    for key in (f"{name}.weight", f"{name}.bias"):
        assert oracles.relative_error(aligned[key], above[key]) < 1e-5, key


def test_a_planted_order_is_recovered_under_noise():
    above = oracles.random_block(1)
    below = _noisy(above, share=0.3)
    for name in HIDDEN_ROWS:
        below = _rows_moved(below, name, _order(len(above[f"{name}.weight"])))
    aligned = _fuse(below, above, t=0.0)
    for name in (f"{name}.weight" for name in HIDDEN_ROWS):
        assert oracles.relative_error(below[name], above[name]) > 1.2
        assert oracles.relative_error(aligned[name], above[name]) < 0.4, name


def test_identical_parents_give_themselves():
    block = oracles.random_block(1, biases=True)
    for name, tensor in _fuse(block, block).items():
        if not name.startswith(OUTPUTS):
            assert oracles.relative_error(tensor, block[name]) < 1e-5, name


def test_the_plan_of_the_attention_output_flows_into_the_ffn():
    above = oracles.random_block(1)
    order = _order(40)
    norm, gate, up = "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"
    below = _rows_moved(above, "self_attn.o_proj", order)
    below |= {name: above[name][:, order] for name in (gate, up)}
    below[norm] = above[norm][order]
    aligned = _fuse(below, above, t=0.0)
    for name in (gate, up):
        assert oracles.relative_error(aligned[name], above[name]) < 1e-5, name
    torch.testing.assert_close(aligned[norm], (above[norm] + below[norm]) / 2)
    for name in ("input_layernorm.weight", *(f"{name}.weight" for name in HIDDEN_ROWS)):
        assert oracles.relative_error(aligned[name], above[name]) < 1e-5, name


def test_gate_and_up_have_plans_of_their_own_rows():
    above = oracles.random_block(1, biases=True)
    below = _rows_moved(above, "mlp.gate_proj", _order(57, seed=1))
    below = _rows_moved(below, "mlp.up_proj", _order(57, seed=2))
    aligned = _fuse(below, above, t=0.0)
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        for key in (f"{name}.weight", f"{name}.bias"):
            assert oracles.relative_error(aligned[key], above[key]) < 1e-5, key


def test_t_moves_from_the_aligned_lower_neighbour_to_the_upper():
    below, above = oracles.random_block(1, biases=True), oracles.random_block(2, biases=True)
    start, end = _fuse(below, above, t=0.0), _fuse(below, above, t=1.0)
    for name, tensor in end.items():
        if not name.startswith(OUTPUTS):
            torch.testing.assert_close(tensor, above[name], rtol=1e-6, atol=1e-7)
    for t in (0.5, 2 / 3):
        for name, tensor in _fuse(below, above, t=t).items():
            torch.testing.assert_close(tensor, (1 - t) * start[name] + t * end[name])


def test_a_plan_cut_short_is_told():
    below, above = oracles.random_block(1), oracles.random_block(2)
    with pytest.warns(sinkhorn.TransportWarning, match="normalised"):
        _fuse(below, above, Options(fidelity="normalised", max_iterations=1))


def test_bfloat16_parents_are_computed_in_float32():
    below, above = (
        {name: t.bfloat16() for name, t in oracles.random_block(seed).items()} for seed in (1, 2)
    )
    new = _fuse(below, above)
    exact = _fuse(*({name: t.float() for name, t in b.items()} for b in (below, above)))
    for name, tensor in new.items():
        assert torch.equal(tensor.float(), exact[name]), name


def _provable():
    """Return two blocks that transformers' own Llama can run: as wide as its heads divide."""
    return tuple(oracles.random_block(seed, hidden=42, biases=True) for seed in (1, 2))


def test_the_best_matched_neurons_are_averaged_and_the_others_the_upper_block_s():
    below, above = _provable()
    plain = {"restore_norms": False, "output_scale": 1}
    whole, none, half = (
        _fuse(below, above, Options(matched_share=share, **plain)) for share in (1, 0, 0.5)
    )
    shared = {name for name in none if "norm" in name} | {f"{name}.bias" for name in OUTPUTS}
    for name, tensor in none.items():
        if name not in shared:
            assert torch.equal(tensor, above[name]), name
    up, gate, down = (f"mlp.{kind}_proj" for kind in ("up", "gate", "down"))
    anatomy = gaps.llama_of(below, above).anatomy.blocks[0]
    similarity = Matcher(below, above, anatomy).neurons("").similarity_after
    kept = torch.zeros(57, dtype=torch.bool)
    kept[similarity.topk(round(57 / 2)).indices] = True
    for name in (f"{up}.weight", f"{up}.bias", f"{gate}.weight", f"{gate}.bias"):
        assert torch.equal(half[name][kept], whole[name][kept]), name
        assert torch.equal(half[name][~kept], above[name][~kept]), name
        assert not torch.equal(whole[name][~kept], above[name][~kept]), name
    weight = f"{down}.weight"
    assert torch.equal(half[weight][:, kept], whole[weight][:, kept])
    assert torch.equal(half[weight][:, ~kept], above[weight][:, ~kept])


def test_of_two_kv_groups_the_better_matched_one_is_averaged():
    below, above = _provable()
    key = f"{HIDDEN_ROWS[1]}.weight"
    half = _fuse(below, above, Options(matched_share=0.5, restore_norms=False))
    whole = _fuse(below, above, Options(restore_norms=False))
    groups = [torch.equal(half[key].chunk(2)[g], whole[key].chunk(2)[g]) for g in (0, 1)]
    assert sorted(groups) == [False, True]
    left = groups.index(False)
    for name in HIDDEN_ROWS:
        for kind in ("weight", "bias"):
            full = f"{name}.{kind}"
            assert torch.equal(half[full].chunk(2)[left], above[full].chunk(2)[left]), full
            assert torch.equal(half[full].chunk(2)[1 - left], whole[full].chunk(2)[1 - left]), full


@pytest.mark.parametrize(
    ("fidelity", "option", "right"),
    [
        ("published", "regularisation", "distance_regularisation"),
        ("normalised", "distance_regularisation", "regularisation"),
        ("structured", "distance_regularisation", "regularisation"),
    ],
)
@pytest.mark.parametrize("value", ["0.06", "0.5"])
def test_a_regularisation_in_the_wrong_unit_is_refused(fidelity, option, right, value):
    with pytest.raises(DeepenError) as refused:
        parse_options(METHOD, {"fidelity": fidelity, option: value})
    assert str(refused.value) == (
        f"Options of 'opt-deus' contradict each other: "
        f"{option} has no meaning with fidelity={fidelity}, which takes {right}."
    )


@pytest.mark.parametrize("fidelity", ["published", "normalised", "structured"])
def test_the_regularisation_is_recorded_in_its_unit(fidelity, llama, tmp_path):
    unit = "distance_regularisation" if fidelity == "published" else "regularisation"
    options = {"fidelity": fidelity, unit: 0.5}
    deepen.grow(llama, tmp_path / "grown", options=options, new_layers=1)
    config = json.loads((tmp_path / "grown/config.json").read_text(encoding="utf-8"))
    recorded = config["deepen"]["steps"][-1]["options"]
    assert options.items() <= recorded.items()
    assert [name for name in recorded if "regularisation" in name] == [unit]
    assert recorded["restore_norms"] == (fidelity == "structured")


def test_a_regularisation_at_its_default_is_not_listed_as_chosen(llama):
    chosen = deepen.plan(llama, options={"fidelity": "published"}).growth.chosen_options
    assert chosen == {"fidelity": "published"}


def test_the_strength_of_the_published_plan_is_the_distance_regularisation():
    below, above = (oracles.random_block(seed, std=0.1) for seed in (1, 2))
    weak = _fuse(below, above, Options(fidelity="published", distance_regularisation=50.0))
    uniform = below["self_attn.q_proj.weight"].mean(0) / 36  # rows of a plan sum to 1/n
    expected = (uniform + above["self_attn.q_proj.weight"]) / 2
    assert oracles.relative_error(weak["self_attn.q_proj.weight"], expected) < 1e-4
