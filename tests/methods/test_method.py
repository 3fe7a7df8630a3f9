"""What the house does for every method, whatever the method makes."""

import pytest
import torch

import gaps
import tiny
from deepen import methods
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model
from deepen.common.errors import DeepenError
from deepen.growth.fuse import Growth, grown_tensors
from deepen.growth.preview import config_of, lineage_of
from deepen.methods.method import Method, between, parse_options
from deepen.methods.options import FusedOptions, Options
from deepen.planning.plan import insert_after
from deepen.records.growth import GrowRequest


def heedless(options, gap):
    """Make every tensor that is asked for, and none of them zero."""
    for name in gap.tensors:
        yield name, gap.above[name].float() + 1


def silent(options, gap):
    """Zero the outputs by itself."""
    for name, spec in gap.tensors.items():
        yield name, gap.above[name] * (spec.silent is None)


def meddling(options, gap):
    """Make what nobody asked for."""
    for name in gap.anatomy.block:
        yield name, gap.above[name]


def forgetful(options, gap):
    """Leave out the latest tensor."""
    for name in list(gap.tensors)[:-1]:
        yield name, gap.above[name]


def growth(llama, fuse, options):
    """Return the growth of a tiny Llama by a method that was just made up, and the Llama."""
    method = Method("mine", "made up", "none", between(), fuse, type(options))
    module = tiny.load(llama)
    base = as_model(ModuleSource(module, module.config.to_dict()))
    plan = insert_after(base.depth, [2, 4], copies=False)
    return Growth(base, GrowRequest(method="mine"), plan, method, options, gaps.CPU), module


def difference(growth, module, ids):
    """Return how far the grown model's logits are from the base's."""
    config = type(module.config).from_dict(config_of(growth, lineage_of(growth)))
    state = dict(grown_tensors(growth))
    grown = type(module).from_pretrained(None, config=config, state_dict=state).eval()
    return float((grown(ids).logits - module(ids).logits).detach().abs().max())


def test_outputs_are_silenced_whatever_a_method_makes(llama):
    ids = tiny.tokens(llama)
    kept, module = growth(llama, heedless, FusedOptions())
    assert difference(kept, module, ids) == 0
    assert kept.method.preserves_function
    assert lineage_of(kept).steps[-1].preserves_function
    moved, module = growth(llama, heedless, FusedOptions(output_scale=1))
    assert difference(moved, module, ids) > 0.1
    assert not lineage_of(moved).steps[-1].preserves_function
    new, above = gaps.first_block(moved), moved.base.block(3, gaps.CPU)
    assert all(torch.equal(tensor, above[name] + 1) for name, tensor in new.items())


def test_plain_options_promise_nothing(llama):
    made, module = growth(llama, silent, Options())
    assert difference(made, module, tiny.tokens(llama)) == 0  # and yet
    assert not made.method.preserves_function
    assert not lineage_of(made).steps[-1].preserves_function
    moved, module = growth(llama, heedless, Options())
    assert difference(moved, module, tiny.tokens(llama)) > 0.1


@pytest.mark.parametrize(
    ("fuse", "sentence"),
    [
        (meddling, "Method 'mine' made tensor 'self_attn.o_proj.weight' twice or unasked between"),
        (forgetful, "Method 'mine' did not make tensor 'mlp.up_proj.weight' between"),
    ],
)
def test_what_is_unasked_or_left_out_is_refused(llama, fuse, sentence):
    with pytest.raises(DeepenError, match=f"{sentence} blocks 2 and 3"):
        gaps.first_block(growth(llama, fuse, FusedOptions())[0])


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e999", "1e300", "9" * 5000])
def test_no_number_of_any_method_may_be_infinite(value):
    tried = 0
    for name in methods.names():
        method = methods.get(name)
        for option, field in method.options.model_fields.items():
            if field.annotation in (int, float):
                tried += 1
                with pytest.raises(DeepenError, match=f"Option '{option}'") as caught:
                    parse_options(method, {option: value})
                assert len(str(caught.value)) < 400
    assert tried > 20
