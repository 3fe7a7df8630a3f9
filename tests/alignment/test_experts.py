"""Matching experts: planted permutations, both layouts, routing groups, and what it leads to."""

import itertools

import pytest
import torch
from torch import Tensor

import deepen
import shrink
from cases import CASES
from deepen.alignment.experts import (
    assigned_in_groups,
    expert_order,
    expert_similarity,
    matched_experts,
)
from deepen.base.anatomy import BlockAnatomy
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.common.errors import DeepenError
from deepen.growth.fuse import logical_tensors
from deepen.growth.preview import resolve
from deepen.records.growth import GrowRequest

CPU = torch.device("cpu")
LAST = shrink.BLOCKS - 1
# Plain, biases in banks with a router's bias, and corrections of one and two axes.
MIXTURES = ("mixtral", "gpt_oss", "glm_moe_dsa", "ernie4_5_moe", "jetmoe")
ORDER = [2, 0, 3, 1]

Tensors = dict[str, Tensor]


def read(case: str, index: int = LAST, seed: int = 0) -> tuple[Tensors, BlockAnatomy]:
    """Return one block's logical tensors; corrections are random too."""
    model_type, settings = CASES[case]
    model = shrink.model(model_type, seed, **settings)
    base = as_model(ModuleSource(model, model.config.to_dict()))
    block = {name: tensor.clone() for name, tensor in base.block(index, CPU).items()}
    if correction := base.anatomy.blocks[index].name("router_correction"):
        torch.nn.init.normal_(block[correction], generator=torch.Generator().manual_seed(seed))
    return block, base.anatomy.blocks[index]


def renumbered(block: Tensors, anatomy: BlockAnatomy, order: list[int]) -> Tensors:
    """Return the block whose expert i is the given block's expert order[i]."""
    result = {}
    for name, spec in anatomy.block.items():
        source = name
        if spec.unit.isdigit():
            source = anatomy.names[spec.role, str(order[int(spec.unit)]), spec.bias]
        tensor = block[source]
        if "expert" in spec.axes:
            tensor = tensor.index_select(spec.axes.index("expert"), torch.tensor(order))
        result[name] = tensor
    return result


def regauged(block: Tensors, anatomy: BlockAnatomy) -> Tensors:
    """Shuffle the neurons inside every expert, and scale up against down, also by negatives."""
    generator, result = torch.Generator().manual_seed(7), dict(block)
    for expert in anatomy.experts:
        gate, up, down = (
            anatomy.names[role, expert, False] for role in ("gate", "up", "ffn_output")
        )
        order = torch.randperm(len(block[gate]), generator=generator)
        scale = torch.randn(len(order), generator=generator).exp()
        scale[::3] *= -1
        result[gate] = block[gate][order]
        result[up] = block[up][order] * scale[:, None]
        result[down] = block[down][:, order] / scale
    return result


def noisy(block: Tensors, anatomy: BlockAnatomy, share: float) -> Tensors:
    """Add noise to every tensor, in units of its own spread."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.numel() > 1
        else tensor
        for name, tensor in block.items()
    }


def without(block: Tensors, anatomy: BlockAnatomy, *roles: str) -> Tensors:
    """Set the tensors of some roles to zero."""
    return {n: t * (anatomy.block[n].role not in roles) for n, t in block.items()}


@pytest.mark.parametrize("case", MIXTURES)
def test_a_planted_permutation_is_undone_to_the_last_bit(case):
    block, anatomy = read(case)
    found = matched_experts(renumbered(block, anatomy, ORDER), block, anatomy)
    assert list(found) == list(block)
    assert len(found) == len(block)
    for name, tensor in block.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("case", MIXTURES)
def test_neurons_and_their_scales_inside_experts_do_not_matter(case):
    block, anatomy = read(case)
    moved = renumbered(regauged(block, anatomy), anatomy, ORDER)
    blind = [without(side, anatomy, "router") for side in (moved, block)]
    for below, above in ((moved, block), blind):
        order = expert_order(below, above, anatomy)
        assert [ORDER[index] for index in order] == [0, 1, 2, 3]


@pytest.mark.parametrize("case", ["mixtral", "deepseek_v3"])
def test_identical_blocks_give_the_identity(case):
    block, anatomy = read(case)
    assert expert_order(block, block, anatomy).tolist() == [0, 1, 2, 3]
    silent = without(block, anatomy, "router", "ffn_output")
    assert expert_order(silent, silent, anatomy).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ignored", [(), ("router",), ("gate", "up", "ffn_output")])
def test_noisy_copies_are_still_matched_by_router_or_by_what_they_compute(ignored):
    block, anatomy = read("mixtral")
    copies = without(noisy(block, anatomy, 0.5), anatomy, *ignored)
    order = expert_order(renumbered(copies, anatomy, ORDER), block, anatomy)
    assert [ORDER[index] for index in order] == [0, 1, 2, 3]


@pytest.mark.parametrize("case", ["mixtral", "cohere2_moe", "minimax_m3_vl_text"])
def test_similarity_is_blind_to_everything_that_a_block_is_indifferent_to(case):
    """Neurons' order, up against down, and a gain moved from the norm into what reads it."""
    block, anatomy = read(case, index=3)
    other, _ = read(case, index=4)
    norm = anatomy.name("ffn_norm") or anatomy.names["attention_norm", "", False]
    gain = torch.randn(block[norm].shape, generator=torch.Generator().manual_seed(1)).exp() ** 2
    offset = 1 if case.startswith("minimax_m3") else 0
    moved = regauged(block, anatomy)
    moved[norm] = (block[norm] + offset) / gain - offset
    for name, spec in anatomy.block.items():
        if spec.role == "router" or (spec.role in ("gate", "up") and spec.unit.isdigit()):
            moved[name] = moved[name] * gain
    expected = expert_similarity(block, other, anatomy)
    torch.testing.assert_close(expert_similarity(moved, other, anatomy), expected)
    torch.testing.assert_close(expert_similarity(other, moved, anatomy).T, expected)
    assert expected.std() > 0.05
    same = expert_similarity(block, moved, anatomy)
    torch.testing.assert_close(same.diag(), torch.full((4,), 2.0))
    assert same.fill_diagonal_(0).max() < 1.5


@pytest.mark.parametrize("case", ["mixtral", "deepseek_v3", "granitemoe"])
@pytest.mark.parametrize("fidelity", ["normalised", "structured"])
def test_both_layouts_give_the_same_new_block_to_the_last_bit(case, fidelity, tmp_path):
    model_type, settings = CASES[case]
    model = shrink.model(model_type, **settings)
    model.save_pretrained(tmp_path)
    request = GrowRequest(
        placement=f"after:{LAST - 1}", options={"fidelity": fidelity}, device="cpu"
    )
    bases = open_model(tmp_path), as_model(ModuleSource(model, model.config.to_dict()))
    new = []
    for base in bases:
        growth = resolve(base, request)
        made = logical_tensors(growth, growth.plan.inserts[0])
        new.append({base.anatomy.blocks[LAST].block[name].key: value for name, value in made})
    assert bases[0].anatomy.blocks[LAST].stored != bases[1].anatomy.blocks[LAST].stored
    assert new[0].keys() == new[1].keys()
    for key, tensor in new[0].items():
        assert torch.equal(tensor, new[1][key]), key


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_the_best_such_assignment_is_found(groups, seed):
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
    size = 6 // groups
    allowed = [
        order
        for order in itertools.permutations(range(6))
        if all(
            len({row // size for row in order[start : start + size]}) == 1
            for start in range(0, 6, size)
        )
    ]
    total = {order: float(similarity[list(order), range(6)].sum()) for order in allowed}
    found = tuple(assigned_in_groups(similarity, groups).tolist())
    assert found in allowed
    assert total[found] == pytest.approx(max(total.values()))


@pytest.mark.parametrize(
    ("settings", "together"),
    [
        ({}, True),
        ({"topk_group": 2}, False),  # all groups are chosen
        ({"n_group": 1}, False),
    ],
)
def test_the_config_says_whether_routers_choose_among_groups(settings, together):
    model_type, case = CASES["deepseek_v3"]
    model = shrink.model(model_type, **{**case, **settings})
    anatomy = as_model(ModuleSource(model, model.config.to_dict())).anatomy.blocks[LAST]
    block, _ = read("deepseek_v3")
    planted = renumbered(block, anatomy, [0, 2, 1, 3])  # tears the groups apart
    order = expert_order(planted, block, anatomy).tolist()
    assert (order == [0, 2, 1, 3]) is not together
    assert ({order[0] // 2, order[1] // 2} in ({0}, {1})) is together


def test_blocks_without_experts_are_left_alone():
    block, anatomy = read("deepseek_v3", index=0)
    assert matched_experts(block, block, anatomy) is block


def test_a_checkpoint_that_lacks_an_expert_is_named():
    block, anatomy = read("mixtral")
    router = anatomy.names["router", "", False]
    torn = block | {router: torch.zeros(5, block[router].shape[1])}
    with pytest.raises(DeepenError, match="has 5 rows for 4 experts"):
        matched_experts(torn, block, anatomy)


def test_a_block_between_a_block_and_its_renumbered_twin_is_the_twin(tmp_path):
    model = shrink.model("mixtral")
    lower, upper = model.model.layers[LAST - 1], model.model.layers[LAST]
    upper.load_state_dict(lower.state_dict())
    with torch.no_grad():
        for tensor in (*upper.mlp.experts.parameters(), upper.mlp.gate.weight):
            tensor.copy_(tensor[ORDER])
    model.save_pretrained(tmp_path / "base")
    options = {"fidelity": "normalised"}
    deepen.grow(tmp_path / "base", tmp_path / "grown", options=options, placement="after:4")
    grown = open_model(tmp_path / "grown")
    new, twin, anatomy = grown.block(LAST, CPU), grown.block(LAST + 1, CPU), grown.anatomy.blocks[5]
    for role in ("router", "gate", "up"):
        for unit in ("",) if role == "router" else anatomy.experts:
            name = anatomy.names[role, unit, False]
            torch.testing.assert_close(new[name], twin[name], rtol=1e-4, atol=1e-5)
    assert not any(new[anatomy.names["ffn_output", unit, False]].any() for unit in anatomy.experts)
