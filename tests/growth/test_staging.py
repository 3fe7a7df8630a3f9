"""Staging: what is left behind by every way to end, and what reaches the disk in which order."""

import os

import pytest

from deepen.common import folders
from deepen.common.errors import DeepenError
from deepen.common.folders import check_place
from deepen.common.lock import locked
from deepen.growth.staging import check_out, staged
from disk import traced

WORK = ".out.deepen-unfinished"


def run(out, *, fail=None, request=None, text="{}", **how):
    how = {"resume": False, "overwrite": False, "resumable": True} | how
    with staged(out, request or {"a": 1}, 100, **how) as folder:
        (folder / "config.json").write_text(text)
        if fail:
            raise fail


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_run_of_what_cannot_be_resumed_takes_the_place_of_a_killed_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", fail=KeyboardInterrupt())
    run(tmp_path / "out", request={"a": 2}, resumable=False)
    assert names(tmp_path) == ["out"]


def test_what_came_to_out_in_the_meantime_stays(tmp_path):
    run(tmp_path / "out", text="first")
    with pytest.raises(DeepenError, match="exists; choose another place"):
        run(tmp_path / "out", text="second")
    assert (tmp_path / "out/config.json").read_text() == "first"


def test_success_leaves_only_out(tmp_path):
    run(tmp_path / "deep/er/out")
    assert names(tmp_path / "deep/er") == ["out"]
    assert names(tmp_path / "deep/er/out") == ["config.json"]


def test_a_mistake_leaves_nothing_not_even_parents(tmp_path):
    with pytest.raises(DeepenError):
        run(tmp_path / "deep/er/out", fail=DeepenError("no"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_any_other_end_leaves_what_can_be_resumed_and_nothing_at_out(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        run(tmp_path / "out", fail=error)
    assert "--resume goes on" in caught.value.__notes__[-1]
    assert names(tmp_path) == [WORK]
    run(tmp_path / "out", resume=True)
    assert names(tmp_path) == ["out"]


def test_what_cannot_be_resumed_is_not_left(tmp_path):
    with pytest.raises(OSError, match="disk full") as caught:
        run(tmp_path / "out", fail=OSError("disk full"), resumable=False)
    assert caught.value.__notes__ == [f"nothing was written to {str(tmp_path / 'out')!r}"]
    assert not list(tmp_path.iterdir())


def test_overwrite_discards_an_unfinished_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", fail=KeyboardInterrupt())
    run(tmp_path / "out", request={"a": 2}, overwrite=True)
    run(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = traced(monkeypatch)
    with staged(tmp_path / "out", {}, 100, resume=False, overwrite=False) as folder:
        (folder / "model.safetensors").write_text("w")
        (folder / "inside").mkdir()
        (folder / "inside/tokenizer.json").write_text("t")
    there = calls.index(("rename", "out"))
    synced = [name for what, name in calls[:there] if what == "fsync"]
    written = ["tokenizer.json", "inside", "model.safetensors", "whole"]
    assert [name for name in synced if name in written] == written
    assert calls[there + 1 :] == [("fsync", tmp_path.name)]


class Killed:
    """A child process that ends without a word before its nth change of a name."""

    def __init__(self, nth, call, can_exchange):
        self.nth, self.count = nth, 0
        child = os.fork()
        if child == 0:
            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                setattr(os, name, self.dying(getattr(os, name)))
            folders.exchange = self.dying(
                folders.exchange if can_exchange else lambda one, other: False
            )
            call()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 7)
        self.ended = code == 0

    def dying(self, real):
        def run(*given, **more):
            if self.count == self.nth:
                os._exit(7)
            self.count += 1
            return real(*given, **more)

        return run


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_kill_at_any_moment_loses_neither_old_nor_new(tmp_path, can_exchange, old):
    seen = set()
    for nth in range(40):
        place = tmp_path / str(nth) / "out"
        file = place / "config.json"
        place.parent.mkdir()
        if old:
            run(place, text=old)
        killed = Killed(nth, lambda at=place: run(at, text="new", overwrite=True), can_exchange)
        if can_exchange and old:
            assert file.read_text() in ("old", "new")
        check_place(place, overwrite=True)  # what every run does first
        now = file.read_text() if file.exists() else None
        assert now in (old, "new")
        assert (WORK in names(place.parent)) <= (now == old)
        seen.add((WORK in names(place.parent), now))
        if killed.ended:
            break
        if now == old:
            run(place, text="new", overwrite=True)
        assert names(place.parent) == ["out"]
    assert killed.ended
    assert seen == {(False, old), (True, old), (False, "new")}


@pytest.mark.parametrize("planted", ["link", "file", "foreign"])
def test_a_work_folder_that_another_user_laid_there_is_not_used(tmp_path, monkeypatch, planted):
    work, elsewhere = tmp_path / WORK, tmp_path / "elsewhere"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", fail=KeyboardInterrupt())
    if planted == "foreign":
        foreign = work.stat().st_uid + 1
        monkeypatch.setattr(os, "geteuid", lambda: foreign)
    else:
        work.rename(elsewhere)
        work.symlink_to(elsewhere) if planted == "link" else work.write_text("")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(DeepenError, match="was not made by a run of yours"):
            run(tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_work_folder_is_its_owners_and_what_comes_of_it_follows_the_mask(tmp_path):
    before = os.umask(0o027)
    try:
        with staged(tmp_path / "out", {}, 100, resume=False, overwrite=False) as folder:
            assert folder.parent.stat().st_mode & 0o777 == 0o700
            (folder / "a").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out/a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "link").symlink_to("there/out")
    run(tmp_path / "link", text="old")
    run(tmp_path / "link", text="new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/out/config.json").read_text() == "new"
    assert names(tmp_path) == ["link", "there"]
    assert names(tmp_path / "there") == ["out"]


def test_a_place_that_cannot_be_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for out in ("file/out", "circle", "n" * 250, "n" * 400):
        with pytest.raises(DeepenError, match=r"cannot be written \(.+\); choose another place"):
            check_out(tmp_path / out, None, overwrite=False)
    assert names(tmp_path) == ["circle", "file"]


def test_a_place_that_is_being_written_to_is_refused_at_once(tmp_path):
    with locked(tmp_path / "out"), pytest.raises(DeepenError, match="Another run"):
        check_out(tmp_path / "out", None, overwrite=True)
    check_out(tmp_path / "out", None, overwrite=True)
    assert not list(tmp_path.iterdir())
