"""inspect on plain, grown and twice grown checkpoints."""

import deepen
from deepen.base import model as opening


def test_a_plain_base(any_family):
    record = deepen.inspect(any_family)
    assert record.blocks == 6
    assert record.new_blocks == []
    assert [origin.block for origin in record.origins] == list(range(6))


def test_lineage_of_a_twice_grown_model(llama, tmp_path):
    deepen.grow(llama, tmp_path / "once", placement="after:0,3")  # 0 [1] 1 2 3 [5] 4 5
    deepen.grow(tmp_path / "once", tmp_path / "twice", method="llama-pro", placement="after:1,7")
    record = deepen.inspect(tmp_path / "twice")
    assert record.new_blocks == [2, 9]
    told = [(o.step, o.block, o.method, o.parents) for o in record.origins]
    assert told == [
        (0, 0, None, []),
        (1, None, "opt-deus", [0, 1]),
        (2, None, "llama-pro", [1]),
        (0, 1, None, []),
        (0, 2, None, []),
        (0, 3, None, []),
        (1, None, "opt-deus", [3, 4]),
        (0, 4, None, []),
        (0, 5, None, []),
        (2, None, "llama-pro", [7]),
    ]
    assert record.new_parameters == 2 * record.parameters_per_block[0]


def test_alignment_is_measured_and_proven_on_the_model_that_was_opened(llama, monkeypatch):
    opened, open_checkpoint = [], opening.open_checkpoint
    monkeypatch.setattr(
        opening,
        "open_checkpoint",
        lambda *given, **how: opened.append(given) or open_checkpoint(*given, **how),
    )
    record = deepen.inspect(llama, alignment=True, device="cpu")
    assert len(opened) == 1
    changes = [block.function_change for block in record.alignment.blocks]
    assert len(changes) == record.blocks - 1
    assert all(0 < change < 1e-5 for change in changes)
