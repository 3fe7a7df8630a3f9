"""Files that are whole or not there."""

from pathlib import Path

import pytest

from deepen.common.files import whole, write_whole


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
