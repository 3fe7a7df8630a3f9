"""What every method promises, held for the whole table and every family."""

import pytest
import torch

import deepen
import tiny
from deepen import methods
from deepen.base import open_base
from deepen.checkpoint import as_bytes
from deepen.growth import _growth
from deepen.methods.base import Request

CPU = torch.device("cpu")


def one_block(method, base, seed=0):
    """Make the first new block of a method's default plan in float32, with its parents."""
    options = method.options()
    inserts = method.place(Request(base.depth)).inserts
    insert = inserts[0]
    state = method.prepare and method.prepare(options, base, inserts, seed, CPU, lambda *_: None)
    below, above = (
        {k: v.clone() for k, v in base.block(i, CPU).items()} for i in (insert.below, insert.above)
    )
    before = {
        k: v.clone()
        for k, v in {
            **{"b." + k: v for k, v in below.items()},
            **{"a." + k: v for k, v in above.items()},
        }.items()
    }
    anatomy = base.anatomy.blocks[insert.nearest]
    made = dict(method.fuse(options, below, above, anatomy, insert, state))
    after = {**{"b." + k: v for k, v in below.items()}, **{"a." + k: v for k, v in above.items()}}
    assert all(torch.equal(as_bytes(before[k]), as_bytes(after[k])) for k in before), (
        "inputs changed"
    )
    return made, below


@pytest.mark.parametrize("name", methods.names())
def test_fuse(name, any_family):
    method, base = methods.get(name), open_base(any_family)
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
    growth = _growth(open_base(llama), method=name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    from deepen.fuse import grown_tensors

    list(grown_tensors(growth))
    assert torch.equal(before, torch.get_rng_state())


def test_names_are_unique_and_described():
    for name in methods.names():
        method = methods.get(name)
        assert method.name == name
        assert method.reference.startswith("arXiv:") or name == "random"
        assert all(field.description for field in method.options.model_fields.values())
