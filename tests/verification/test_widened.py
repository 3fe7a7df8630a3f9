"""A wider checkpoint is run beside its base."""

import tiny
from deepen.growth.widen import widen
from deepen.verification.widened import prove_widened


def test_zeros_are_proven_to_add_nothing_and_a_changed_column_is_noticed(llama, tmp_path):
    widen(llama, tmp_path / "wider", 5)
    assert prove_widened(llama, tmp_path / "wider", device="cpu").passed
    model = tiny.load(tmp_path / "wider")
    model.model.layers[0].mlp.down_proj.weight.data[:, -5:] += 0.1
    model.save_pretrained(tmp_path / "moved")
    assert not prove_widened(llama, tmp_path / "moved", device="cpu").passed
