"""What every method promises, held for the whole table and every family."""

from contextlib import contextmanager

import pytest
import torch

import deepen
import tiny
from deepen import methods
from deepen.base.checkpoint import as_bytes
from deepen.base.model import open_model
from deepen.growth.fuse import grown_tensors, logical_tensors
from deepen.growth.preview import resolve
from deepen.methods.options import FusedOptions
from deepen.planning.placement import PlacementRequest
from deepen.records.growth import GrowRequest

CPU = torch.device("cpu")


def one_block(method, base, seed=0, **options):
    """Make the first new block of a method's default plan in float32, with its parents."""
    request = GrowRequest(method=method.name, seed=seed, options=options, device="cpu")
    growth = resolve(base, request)
    insert = growth.plan.inserts[0]
    with parents_unchanged(base, insert):
        made = dict(logical_tensors(growth, insert))
    return made, dict(base.block(insert.below, CPU))


@contextmanager
def parents_unchanged(base, insert):
    """Hand a method parents in memory, and insist that it leaves them alone."""
    parents = {i: dict(base.block(i, CPU)) for i in insert.parents}
    before = {i: {k: v.clone() for k, v in parent.items()} for i, parent in parents.items()}
    with pytest.MonkeyPatch.context() as patch:
        others = type(base).block
        patch.setattr(
            type(base),
            "block",
            lambda self, i, d, **how: parents.get(i) or others(self, i, d, **how),
        )
        yield
    for i, parent in parents.items():
        assert all(torch.equal(as_bytes(before[i][k]), as_bytes(parent[k])) for k in parent)


@pytest.mark.parametrize("name", methods.names())
def test_fuse(name, any_family):
    method, base = methods.get(name), open_model(any_family)
    made, below = one_block(method, base)
    again, _ = one_block(method, base)
    assert made.keys() == below.keys()
    for suffix, tensor in made.items():
        assert tensor.shape == below[suffix].shape
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, again[suffix])
        spec = base.anatomy.blocks[0].block[suffix]
        if method.preserves_function and spec.writes_residual:
            assert (tensor == spec.silent).all()
        else:
            assert tensor.any()


FUSED = [n for n in methods.names() if issubclass(methods.get(n).options, FusedOptions)]
HIDDEN = ("query", "key", "value", "gate", "up")


@pytest.mark.parametrize("name", FUSED)
def test_output_scale_goes_from_silence_to_the_method_s_own_block(name, llama):
    method, base = methods.get(name), open_model(llama)
    none, half, whole = (one_block(method, base, output_scale=s)[0] for s in (0, 0.5, 1))
    for suffix, spec in base.anatomy.blocks[0].block.items():
        if spec.writes_residual:
            assert not none[suffix].any()
            assert whole[suffix].any()
            assert torch.allclose(half[suffix].float(), whole[suffix].float() / 2)
        else:
            assert torch.equal(none[suffix], whole[suffix])
    assert method.options(output_scale=0).preserves_function
    assert not method.options(output_scale=0.5).preserves_function


@pytest.mark.parametrize("name", FUSED)
def test_feature_scale_acts_on_what_the_outputs_learn_from(name, llama):
    method, base = methods.get(name), open_model(llama)
    plain, _ = one_block(method, base)
    scaled, _ = one_block(method, base, feature_scale=1.5)
    for suffix, spec in base.anatomy.blocks[0].block.items():
        factor = 1.5 if spec.role in ("value", "up") else 1
        assert torch.allclose(scaled[suffix].float(), factor * plain[suffix].float())


ROW_BY_ROW = {"opt-deus": {"fidelity": "normalised"}}


def test_structured_restores_the_norms_of_aligned_rows(llama):
    method, base = methods.get("opt-deus"), open_model(llama)
    plain, restored = (one_block(method, base, restore_norms=on)[0] for on in (False, True))
    for suffix, spec in base.anatomy.blocks[0].block.items():
        if spec.role in HIDDEN and spec.is_weight:
            before, after = (x[suffix].norm(dim=1) for x in (plain, restored))
            assert (after >= before * (1 - 1e-5)).all()  # no mean is longer than its parts' mean
            assert after.mean() > 1.05 * before.mean()


@pytest.mark.parametrize("name", FUSED)
def test_restored_norms_are_means_of_the_parents(name, llama):
    method, base = methods.get(name), open_model(llama)
    anatomy = base.anatomy.blocks[0]
    insert = method.place(PlacementRequest(base.depth)).inserts[0]
    options = ROW_BY_ROW.get(name, {})
    plain, _ = one_block(method, base, restore_norms=False, **options)
    restored, below = one_block(method, base, restore_norms=True, **options)
    above = base.block(insert.above, CPU)
    for suffix, spec in anatomy.block.items():
        if spec.role not in HIDDEN or not spec.is_weight:
            assert torch.equal(restored[suffix], plain[suffix])
            continue
        norms, a, b = (
            x.float().norm(dim=1) for x in (restored[suffix], below[suffix], above[suffix])
        )
        upper = insert.t * b if insert.below != insert.above else torch.zeros_like(b)
        share = 1 - insert.t if insert.below != insert.above else 1
        # Whatever rows of A a row was made from, their norms lie between the extremes of A's.
        assert (norms >= share * a.min() + upper - 1e-3).all()
        assert (norms <= share * a.max() + upper + 1e-3).all()
        directions = torch.nn.functional.cosine_similarity(
            restored[suffix].float(), plain[suffix].float(), dim=1
        )
        assert torch.allclose(directions, torch.ones_like(directions), atol=1e-4)


@pytest.mark.parametrize("name", methods.names())
def test_the_function_is_kept_exactly_where_promised_and_moved_elsewhere(
    name, any_family, tmp_path
):
    record = deepen.grow(any_family, tmp_path / "grown", method=name)
    base, grown = tiny.load(any_family), tiny.load(tmp_path / "grown")
    ids = tiny.tokens(any_family)
    same = torch.equal(base(ids).logits, grown(ids).logits)
    assert same == methods.get(name).preserves_function
    assert grown.config.num_hidden_layers == record.depth == len(grown.model.layers)


@pytest.mark.parametrize("name", methods.names())
def test_nothing_global_is_touched(name, llama):
    growth = resolve(open_model(llama), GrowRequest(method=name))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(grown_tensors(growth))
    assert torch.equal(before, torch.get_rng_state())


def test_names_are_unique_and_described():
    for name in methods.names():
        method = methods.get(name)
        assert method.name == name
        assert method.reference.startswith("arXiv:") or name == "random"
        assert all(field.description for field in method.options.model_fields.values())
