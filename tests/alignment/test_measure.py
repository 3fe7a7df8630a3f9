"""How well blocks align, where it is known."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import tiny
from deepen.alignment.measure import align, gap_scores
from deepen.base.model import open_model
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.records.alignment import AlignmentRecord

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scrambled(tmp_path_factory):
    """A base whose block 3 is block 2 with its neurons and KV groups in another order."""
    base = tiny.save(tmp_path_factory.mktemp("bases") / "scrambled", dtype=torch.float32)
    tensors = load_file(base / "model.safetensors")
    prefix = "model.layers.2."
    block = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
        block[f"mlp.{name}_proj.weight"] = block[f"mlp.{name}_proj.weight"].index_select(
            axis, order
        )
    for name, axis in (("q", 0), ("k", 0), ("v", 0), ("o", 1)):
        weight = block[f"self_attn.{name}_proj.weight"]
        block[f"self_attn.{name}_proj.weight"] = weight.roll(weight.shape[axis] // 2, axis)
    tensors |= {f"model.layers.3.{name}": tensor.clone() for name, tensor in block.items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


def test_a_planted_order_is_seen_and_others_are_chance(scrambled):
    record = align(scrambled)
    assert record.method is None
    assert [(block.below, block.above) for block in record.blocks] == [(i, i + 1) for i in range(5)]
    for block in record.blocks:
        planted = block.below == 2
        assert {part.part: part.units for part in block.parts} == {"heads": 4, "neurons": 40}
        for part in block.parts:
            assert (part.similarity_after > 0.999) == planted
            assert part.similarity_after >= part.similarity_before
            assert part.similarity_by_chance < 0.6
            assert part.cost_before - part.cost_after == pytest.approx(
                part.similarity_after - part.similarity_before
            )
        assert (block.effective_matches < 1.05) == planted
        if planted:  # the entropic plan is the assignment
            assert block.diagonal_mass == pytest.approx(block.parts[1].in_place, abs=1e-3)
        assert block.cka is None
        assert block.norm_ratios == {}
        assert len(block.heat_map) == len(block.heat_map[0]) == 40
    told = record.model_dump_json()
    assert '"cost_before"' in told
    assert AlignmentRecord.model_validate_json(told) == record


def test_the_heat_map_is_in_units_of_the_uniform_plan(scrambled):
    cells = torch.tensor(align(scrambled).blocks[0].heat_map)
    assert cells.mean() == pytest.approx(1, abs=1e-3)


def test_a_grown_model_tells_of_the_parents_of_its_new_blocks(scrambled, tmp_path):
    how = {"options": {"fidelity": "structured"}, "placement": "after:2"}
    deepen.grow(scrambled, tmp_path / "grown", **how)
    (tmp_path / "text.txt").write_text(PASSAGE * 60)
    record = align(tmp_path / "grown", calibration=tmp_path / "text.txt")
    (block,) = record.blocks
    assert (record.method, record.calibration) == ("opt-deus", "text.txt")
    assert (block.below, block.block, block.above) == (2, 3, 4)
    # Of a block and its scrambled copy the mean is the block itself.
    assert all(ratio == pytest.approx(1, abs=1e-4) for ratio in block.norm_ratios.values())
    assert 0 < block.cka <= 1
    deepen.grow(scrambled, tmp_path / "mean", method="avg-deus", placement="after:2")
    ratios = align(tmp_path / "mean").blocks[0].norm_ratios
    assert max(ratios[role] for role in ("gate", "up")) < 0.9


def test_quality_places_new_blocks_where_neighbours_align(scrambled, tmp_path):
    scores = gap_scores(open_model(scrambled), CPU)
    assert scores.index(max(scores)) == 2
    best = deepen.grow(scrambled, tmp_path / "best", placement="quality", new_layers=1)
    assert best.step.new_blocks == [3]
    worst = deepen.grow(scrambled, tmp_path / "worst", placement="quality-low", new_layers=1)
    assert worst.step.new_blocks == [scores.index(min(scores)) + 1]


def test_copies_have_no_two_parents_to_align(llama, tmp_path):
    deepen.grow(llama, tmp_path / "grown", method="llama-pro")
    assert align(tmp_path / "grown").blocks == []


def test_a_text_that_is_missing_is_named(llama, tmp_path):
    with pytest.raises(DeepenError, match="cannot be read"):
        align(shutil.copytree(llama, tmp_path / "base"), calibration=tmp_path / "none.txt")
