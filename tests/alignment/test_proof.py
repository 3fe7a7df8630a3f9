"""What was aligned computes what it did, shown on the base at hand; and what happens if not."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch

import deepen
import shrink
import tiny
from cases import CASES
from deepen.alignment.match import match_pairs
from deepen.alignment.proof import LIMIT, relative_changes
from deepen.base.anatomy import FAMILIES
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model

CPU = torch.device("cpu")
# What a table might get wrong of a Llama of four heads, two of keys and values, six wide.
WRONG = [
    ("llama", {"planes": "adjacent"}),  # RoPE pairs the halves
    ("llama", {"rotary": 0}),
    ("llama", {"rotary": 4}),
    ("llama", {"query": 2, "key_value": 1, "head": 12, "value": 12, "rotary": 12}),
    ("qwen3", {"normed": False}),
]


def alike(base):
    """Return two blocks of each kind and type that there are two of."""
    blocks, types = base.anatomy.blocks, base.anatomy.types
    pairs = {}
    for below, above in combinations(range(base.depth), 2):
        if blocks[below] is blocks[above] and types[below] == types[above]:
            pairs[blocks[below].kind, repr(types[below])] = below, above
    return set(pairs.values())


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_kind_of_block_of_every_family_is_proven(case):
    model_type, settings = CASES[case]
    model = shrink.model(model_type, **settings)
    base = as_model(ModuleSource(model, model.config.to_dict()))
    pairs = alike(base)
    changes = relative_changes(base, match_pairs(base, pairs, CPU), CPU)
    assert changes.keys() == pairs
    assert all(change < LIMIT for change in changes.values())


def test_an_indexer_moves_with_the_groups_that_it_chooses_keys_for():
    model_type, settings = CASES["minimax_m3_vl_text"]
    model = shrink.model(model_type, **settings)
    base = as_model(ModuleSource(model, model.config.to_dict()))
    pair = next(p for p in alike(base) if "indexed" in base.anatomy.blocks[p[0]].kind)
    matchers = match_pairs(base, [pair], CPU)
    assert matchers[pair].heads.groups.tolist() != [0, 1]
    assert relative_changes(base, matchers, CPU)[pair] < 1e-5


@pytest.fixture(params=WRONG, ids=lambda wrong: f"{wrong[0]} {wrong[1]}")
def mistaken(request, monkeypatch, tmp_path):
    """A checkpoint, float32 so that nothing hides in rounding, whose family's table is wrong."""
    family, claims = request.param
    right = FAMILIES[family]
    wrong = replace(right, heads=lambda config: replace(right.heads(config), **claims))
    monkeypatch.setitem(FAMILIES, family, wrong)
    return tiny.save(tmp_path / "base", family, dtype=torch.float32)


def test_heads_that_are_described_wrongly_are_found_and_left_alone(mistaken, tmp_path):
    record = deepen.grow(mistaken, tmp_path / "grown")
    assert [(proof.below, proof.above) for proof in record.proofs] == [(2, 3), (3, 4), (4, 5)]
    assert record.notes == [
        f"Block {proof.below}, aligned to block {proof.above}, would compute something else "
        f"(relative change {proof.relative_change:.2g}), so nothing is aligned there."
        for proof in record.proofs
    ]
    for proof in record.proofs:
        assert not proof.aligned
        assert proof.relative_change > 30 * LIMIT
    plain = {"output_scale": 0, "restore_norms": True}
    deepen.grow(mistaken, tmp_path / "plain", method="avg-deus", options=plain)
    weights = [tmp_path / name / "model.safetensors" for name in ("grown", "plain")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert deepen.verify(mistaken, tmp_path / "grown").passed


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_heads_that_are_described_right_are_aligned(family, tmp_path):
    base = tiny.save(tmp_path / "base", family, dtype=torch.float32)
    record = deepen.grow(base, tmp_path / "grown")
    assert [(proof.below, proof.above) for proof in record.proofs] == [(2, 3), (3, 4), (4, 5)]
    assert record.notes == []
    for proof in record.proofs:
        assert proof.aligned
        assert proof.relative_change < 1e-5
    plain = {"output_scale": 0, "restore_norms": True}
    deepen.grow(base, tmp_path / "plain", method="avg-deus", options=plain)
    weights = [tmp_path / name / "model.safetensors" for name in ("grown", "plain")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_a_model_that_transformers_cannot_run_is_refused_before_anything_is_written(tmp_path):
    base = tiny.save(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(
        deepen.DeepenError, match=r"transformers would not load base: .*intermediate_size"
    ):
        deepen.grow(base, tmp_path / "grown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
