"""The corpus is divided by path alone, and its fingerprint notices every change."""

from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.demo.corpus import read_corpus


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of 40 small modules, and things that are not library code."""
    for index in range(40):
        (tmp_path / f"module_{index}.py").write_text(f"value = {index}\n")
    for name in ("site-packages/other.py", "json/tests/check.py", "data.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("not part of it\n")
    return tmp_path


def test_every_module_is_on_one_side(sources: Path):
    corpus = read_corpus(1.0, 0.3, sources)
    expected = {f"value = {index}\n" for index in range(40)}
    assert set(corpus.training) | set(corpus.held_out) == expected
    assert not set(corpus.training) & set(corpus.held_out)


def test_a_new_file_moves_no_other(sources: Path):
    before = read_corpus(1.0, 0.3, sources)
    (sources / "another.py").write_text("value = 'new'\n")
    after = read_corpus(1.0, 0.3, sources)
    assert set(before.training) <= set(after.training)
    assert set(before.held_out) <= set(after.held_out)


@pytest.mark.parametrize("change", ["content", "name"])
def test_the_fingerprint_notices_a_change(sources: Path, change: str):
    before = read_corpus(1.0, 0.3, sources).fingerprint
    assert before == read_corpus(1.0, 0.3, sources).fingerprint
    module = sources / "module_7.py"
    if change == "content":
        module.write_text("value = 8\n")
    else:
        module.rename(sources / "module_x.py")
    assert before != read_corpus(1.0, 0.3, sources).fingerprint


def test_a_share_is_a_subset(sources: Path):
    whole, part = read_corpus(1.0, 0.3, sources), read_corpus(0.5, 0.3, sources)
    assert set(part.training) < set(whole.training)
    assert set(part.held_out) < set(whole.held_out)


def test_no_sources_is_an_error_that_says_so(tmp_path: Path):
    with pytest.raises(DeepenError, match="no sources"):
        read_corpus(1.0, 0.3, tmp_path)
