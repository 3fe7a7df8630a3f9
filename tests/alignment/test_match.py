"""A block that was aligned to another computes what it did, in every family."""

import pytest
import torch

import shrink
from cases import CASES
from deepen.alignment.match import Matcher
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model

CPU = torch.device("cpu")
IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
BELOW = 2


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def parent_above(anatomy, below):
    """Return the next block of the same kind and type."""
    for index in range(below + 1, anatomy.depth):
        if anatomy.blocks[index] is anatomy.blocks[below]:
            return index
    return below


@pytest.mark.parametrize("case", list(CASES))
def test_aligning_moves_tensors_and_not_the_function(case):
    model_type, settings = CASES[case]
    model = shrink.model(model_type, **settings)
    base = as_model(ModuleSource(model, model.config.to_dict()))
    above = parent_above(base.anatomy, BELOW)
    if above == BELOW:
        pytest.skip("no other block of this kind")
    anatomy, before = base.anatomy.blocks[BELOW], logits(model)
    matcher = Matcher(base.block(BELOW, CPU), base.block(above, CPU), anatomy)
    aligned = {name: tensor.clone() for name, tensor in matcher.aligned()}
    assert aligned.keys() == anatomy.block.keys()
    moved, state = 0, model.state_dict()
    for name, tensor in aligned.items():
        place = anatomy.places[name]
        stored = state[base.family.name(BELOW, place.suffix)]
        moved += not torch.equal(place.read(stored, anatomy.sizes), tensor)
        place.write(tensor, stored, anatomy.sizes)
    if matcher.neurons(anatomy.units[0] if anatomy.units else "") or matcher.heads:
        assert moved >= 2
    difference = (logits(model) - before).abs().max()
    assert difference < 3e-5 * before.abs().max()
