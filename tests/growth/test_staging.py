"""Staging: what is left behind by every way to end."""

import pytest

from deepen.common.errors import DeepenError
from deepen.growth.staging import staged


def run(out, *, fail=None, request=None, **how):
    with staged(
        out, request or {"a": 1}, 100, **({"resume": False, "overwrite": False} | how)
    ) as folder:
        (folder / "config.json").write_text("{}")
        if fail:
            raise fail


def test_success_leaves_only_out(tmp_path):
    run(tmp_path / "deep/er/out")
    assert [f.name for f in (tmp_path / "deep/er").iterdir()] == ["out"]
    assert [f.name for f in (tmp_path / "deep/er/out").iterdir()] == ["config.json"]


def test_a_mistake_leaves_nothing_not_even_parents(tmp_path):
    with pytest.raises(DeepenError):
        run(tmp_path / "deep/er/out", fail=DeepenError("no"))
    assert not list(tmp_path.iterdir())


def test_any_other_end_leaves_what_can_be_resumed_and_nothing_at_out(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path / "out", fail=OSError("disk full"))
    assert [f.name for f in tmp_path.iterdir()] == [".out.deepen-unfinished"]
    run(tmp_path / "out", resume=True)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_overwrite_discards_an_unfinished_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", fail=KeyboardInterrupt())
    run(tmp_path / "out", request={"a": 2}, overwrite=True)
    run(tmp_path / "out", overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
