"""Every stored layout holds its logical tensors once each, and gives back what was put in."""

import pytest
import torch

from deepen.base.anatomy.parts import bank, buffers, fused, linear, norm
from deepen.base.anatomy.tensors import Place, StoredSpec

SIZES = {"query": 24, "key_value": 12, "value": 12, "head": 6, "attended": 24}
QKV = {"query": "query", "key": "key_value", "value": "value"}
LAYOUTS = {
    "rows": (fused("x", QKV)["x.weight"], (48, 10)),
    "rows, bias": (fused("x", QKV)["x.bias"], (48,)),
    "rows, transposed": (fused("x", QKV, transposed=True)["x.weight"], (10, 48)),
    "equal rows": (fused("x", {"gate": "ffn", "up": "ffn"})["x.weight"], (14, 10)),
    "heads": (fused("x", QKV, split="heads")["x.weight"], (48, 10)),
    "heads, bias": (fused("x", QKV, split="heads")["x.bias"], (48,)),
    "transposed": (linear("x", "up", "ffn", "residual", transposed=True)["x.weight"], (10, 7)),
    "bank": (bank("x", {"up": ("ffn", "residual")})["x"], (3, 7, 10)),
    "bank of rows": (
        bank("x", dict.fromkeys(("gate", "up"), ("ffn", "residual")), split="rows")["x"],
        (3, 14, 10),
    ),
    "bank, alternate, transposed": (
        bank(
            "x",
            dict.fromkeys(("gate", "up"), ("ffn", "residual")),
            split="alternate",
            transposed=True,
        )["x"],
        (3, 10, 14),
    ),
    "bank of biases": (
        bank("x", dict.fromkeys(("gate", "up"), ("ffn", "residual")), split="alternate", bias="b")[
            "b"
        ],
        (3, 14),
    ),
}


def places(spec: StoredSpec, shape: tuple[int, ...]) -> list[Place]:
    experts = range(shape[0]) if spec.bank else [None]
    return [Place("x", spec, part, e) for e in experts for part in range(len(spec.parts))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_cover_what_is_stored_once(layout):
    spec, shape = LAYOUTS[layout]
    stored = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [place.read(stored, SIZES) for place in places(spec, shape)]
    assert sorted(torch.cat([part.flatten() for part in parts]).tolist()) == list(
        range(stored.numel())
    )
    for place, part in zip(places(spec, shape), parts, strict=True):
        assert part.dim() == len(spec.parts[place.part].axes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read(layout):
    spec, shape = LAYOUTS[layout]
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    copy = torch.full(shape, torch.nan)
    for place in places(spec, shape):
        place.write(place.read(stored, SIZES), copy, SIZES)
    assert torch.equal(copy, stored)


def test_neox_keeps_query_key_and_value_of_a_head_together():
    spec, shape = LAYOUTS["heads"]
    stored = torch.arange(48)[:, None].expand(shape)
    query, key, value = (place.read(stored, SIZES)[:, 0] for place in places(spec, shape))
    assert query.tolist() == [*range(12), *range(24, 36)]  # two query heads for each key
    assert key.tolist() == [*range(12, 18), *range(36, 42)]
    assert value.tolist() == [*range(18, 24), *range(42, 48)]


def test_gpt_oss_takes_gate_and_up_in_turn():
    spec, shape = LAYOUTS["bank, alternate, transposed"]
    stored = torch.arange(14).expand(shape)
    gate, up = (place.read(stored, SIZES) for place in places(spec, shape)[:2])
    assert gate.shape == up.shape == (7, 10)
    assert gate[:, 0].tolist() == [*range(0, 14, 2)]
    assert up[:, 0].tolist() == [*range(1, 14, 2)]


def test_a_value_of_another_size_does_not_fit():
    spec, shape = LAYOUTS["rows"]
    with pytest.raises(RuntimeError):
        places(spec, shape)[0].write(torch.zeros(23, 10), torch.empty(shape), SIZES)


def test_what_writes_into_the_stream_is_silent_at_its_own_value():
    output = linear("o", "attention_output", "residual", "attended")
    assert {spec.parts[0].silent for spec in output.values()} == {0.0}
    kept = linear("o", "attention_output", "residual", "attended", writes=False)
    assert not any(spec.parts[0].writes_residual for spec in kept.values())
    gain = norm("n", "ffn_output_norm", silent=-1.0)
    assert [spec.parts[0].silent for spec in gain.values()] == [-1.0, 0.0]
    assert buffers("mask")["mask"].is_buffer
