"""How the two parents of a new block are weighed, whichever method aligns them."""

import pytest
import torch

import gaps
from deepen.base.model import open_model
from deepen.methods.options import BlendedOptions

ARMS = {
    "avg-deus": {},
    "structured": {"fidelity": "structured"},
    "normalised": {"fidelity": "normalised"},
}
HIDDEN = ("query", "key", "value", "gate", "up")
arms = pytest.mark.parametrize("arm", ARMS)


def fused(arm, base, **options):
    """Make the first new block in float32; return it with its specs and its upper parent."""
    method = arm if arm == "avg-deus" else "opt-deus"
    given = {"output_scale": 1, "restore_norms": False} | ARMS[arm] | options
    growth = gaps.growth_of(base, method, **given)
    insert = growth.plan.inserts[0]
    made = {name: tensor.float() for name, tensor in gaps.first_block(growth).items()}
    return made, base.anatomy.blocks[insert.nearest].block, base.block(insert.above, gaps.CPU)


@arms
def test_the_upper_share_goes_from_the_aligned_lower_block_to_the_upper_one(arm, llama):
    base = open_model(llama)
    lower, _, above = fused(arm, base, upper_share=0)
    upper, *_ = fused(arm, base, upper_share=1)
    between, *_ = fused(arm, base, upper_share=0.75)
    for name, tensor in upper.items():
        torch.testing.assert_close(tensor, above[name].float())
        torch.testing.assert_close(between[name], 0.25 * lower[name] + 0.75 * tensor)


def test_several_blocks_in_a_gap_are_shifted_by_the_same_odds():
    weights = [BlendedOptions(upper_share=0.8).weight(t) for t in (0.25, 0.5, 0.75)]
    assert [w / (1 - w) for w in weights] == pytest.approx([4 / 3, 4, 12])
    for m in range(1, 20):
        for j in range(1, m + 1):
            assert BlendedOptions().weight(j / (m + 1)) == j / (m + 1)


@arms
def test_matched_norms_are_those_of_the_upper_block_s_rows(arm, llama):
    base = open_model(llama)
    aligned, specs, above = fused(arm, base, upper_share=0, match_norms=True)
    plain, *_ = fused(arm, base, upper_share=0)
    for name, spec in specs.items():
        if spec.is_weight and spec.role in HIDDEN:
            norms = aligned[name].norm(dim=1)
            torch.testing.assert_close(norms, above[name].float().norm(dim=1))
            cosines = torch.cosine_similarity(aligned[name], plain[name], dim=1)
            torch.testing.assert_close(cosines, torch.ones_like(cosines))
        else:
            assert torch.equal(aligned[name], plain[name])


@pytest.mark.parametrize("arm", ["avg-deus", "structured"])  # row by row restores other norms
def test_matched_norms_that_are_restored_are_the_upper_block_s(arm, llama):
    made, specs, above = fused(arm, open_model(llama), match_norms=True, restore_norms=True)
    for name, spec in specs.items():
        if spec.is_weight and spec.role in HIDDEN:
            torch.testing.assert_close(made[name].norm(dim=1), above[name].float().norm(dim=1))
