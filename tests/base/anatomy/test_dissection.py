"""Matching a checkpoint against its family's table."""

from typing import Any

import pytest

import tiny
from deepen.base.anatomy import FAMILIES, dissect
from deepen.common.errors import DeepenError


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tiny.model(family).state_dict().items()}


def config_of(family: str) -> dict[str, Any]:
    return tiny.model(family).config.to_dict()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_tables_know_what_transformers_models_hold(name):
    shapes = shapes_of(name)
    family = FAMILIES[name.partition("-")[0]]
    anatomy = dissect(family, config_of(name), shapes)
    names = {family.name(i, suffix) for i in range(6) for suffix in anatomy.blocks[i].stored}
    assert names | set(anatomy.outside) == set(shapes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s.update({"model.layers.2.mlp.router.weight": (3, 24)}),
            "'model.layers.2.mlp.router.weight' is not part",
        ),
        (lambda s: s.update({"score.weight": (2, 24)}), "'score.weight' is not part"),
        (lambda s: s.update({"model.layers.6.mlp.up_proj.weight": (40, 24)}), "belongs to block 6"),
        (
            lambda s: s.pop("model.layers.3.mlp.up_proj.weight"),
            "lacks tensor 'model.layers.3.mlp.up_proj",
        ),
        (lambda s: s.pop("model.norm.weight"), "lacks tensor 'model.norm.weight'"),
        (
            lambda s: s.update({"model.layers.1.self_attn.q_proj.bias": (24,)}),
            "lacks tensor 'model.layers.0.self_attn.q_proj.bias'",
        ),
        (
            lambda s: s.update({"model.layers.3.mlp.up_proj.weight": (48, 24)}),
            "Shapes differ between blocks.*48 along its ffn axis",
        ),
        (lambda s: s.update({"model.layers.3.mlp.up_proj.weight": (40,)}), "has 1 axes"),
    ],
)
def test_what_does_not_match_is_named(change, sentence):
    shapes = shapes_of("llama")
    change(shapes)
    with pytest.raises(DeepenError, match=sentence):
        dissect(FAMILIES["llama"], config_of("llama"), shapes)
