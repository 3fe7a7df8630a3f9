"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.common.files import leads_out, make_folders, remove_empty, sync_tree, whole, write_whole
from disk import traced


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ("one\n", "zwei ü\n"):
        write_whole(file, text)
        assert file.read_bytes() == text.encode()
        assert list(tmp_path.iterdir()) == [file]


def test_until_it_is_whole_the_old_file_stands(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_text("old")
    with whole(file) as beside:
        beside.write_text("new")
        assert beside.name.startswith(".")
        assert file.read_text() == "old"
    assert file.read_text() == "new"


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_things_as_they_were(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail(file: Path) -> None:
        with whole(file) as beside:
            beside.write_text("half")
            raise failure

    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        with pytest.raises(failure):
            fail(tmp_path / name)
    assert [f.read_text() for f in tmp_path.iterdir()] == ["old"]


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "\ud800")
    assert not list(tmp_path.iterdir())


def test_what_is_renamed_is_on_the_disk_before_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = traced(monkeypatch)
    write_whole(tmp_path / "a.json", "text")
    beside = next(name for what, name in calls if what == "fsync")
    assert calls == [("fsync", beside), ("rename", "a.json"), ("fsync", tmp_path.name)]


def test_folders_that_are_made_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = traced(monkeypatch)
    made = make_folders(tmp_path / "a/b")
    assert made == [tmp_path / "a/b", tmp_path / "a"]
    assert {name for _, name in calls} == {"a", tmp_path.name}
    (tmp_path / "a/file").touch()
    remove_empty(made)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a/file"]


def test_a_tree_is_synced_from_the_bottom_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top/inside").mkdir(parents=True)
    (tmp_path / "top/inside/low").touch()
    (tmp_path / "top/high").touch()
    calls = traced(monkeypatch)
    sync_tree(tmp_path / "top")
    assert [name for _, name in calls] == ["low", "inside", "high", "top"]


def test_a_name_that_no_file_can_have_is_none_of_a_folder():
    assert not leads_out("a" * 255)
    assert leads_out("a" * 256)
    assert leads_out("ä" * 200)


def test_a_pipe_or_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    """Whoever may write to /dev could lose one."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("pipe", "device"):
        with pytest.raises(DeepenError, match="no regular file"):
            write_whole(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "device").is_char_device()
    assert len(list(tmp_path.iterdir())) == 2
