"""Texts of the registry: put together from a catalogue, divided for good."""

import json
import struct
import zipfile
from pathlib import Path

import pytest

from deepen.base.registry import file_name, texts
from deepen.base.registry.texts import RegistryText, cut, divided, text_file, translated_manual
from deepen.common.errors import DeepenError

LONG = "This paragraph stands first in the help page and is quite long. " * 6
NEXT = "This one comes second, in the help page of this small program. " * 6
SHORT, OTHER = "a message of a few words", "another message of a few words"
CATALOGUE = {
    LONG.strip(): "ERSTER " * 50,
    NEXT.strip(): "ZWEITER " * 50,
    SHORT: "eine Meldung aus einigen Wörtern " * 7,
    OTHER: "noch eine Meldung aus einigen Wörtern " * 6,
    "bare": "bloss",
}


def machine_object(messages: dict[str, str]) -> bytes:
    """Write GNU gettext's .mo format: two tables of lengths and offsets, then the strings."""
    pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    strings = [[text.encode() for text in column] for column in zip(*pairs, strict=True)]
    place, tables, content = 28 + 16 * len(pairs), b"", b""
    for column in strings:
        for text in column:
            tables += struct.pack("<II", len(text), place + len(content))
            content += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + tables + content


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A program with a help page, a module and a catalogue."""
    file = tmp_path / "program.whl"
    docstring = f"def f():\n    '''{NEXT.strip()}\n\n    {LONG.strip()}\n    '''\n"
    with zipfile.ZipFile(file, "w") as archive:
        page = f"{LONG.strip()}\n\nNot translated.\n\n{NEXT.strip()}"
        archive.writestr("program/helptext/page.txt", page)
        archive.writestr("program/module.py", f"{docstring}print(b'{SHORT}', 'bare', '{OTHER}')\n")
        archive.writestr("program/de.mo", machine_object(CATALOGUE))
    return file


def test_a_manual_has_the_order_of_its_pages_and_every_paragraph_once(wheel: Path) -> None:
    documents = translated_manual(wheel, "program/de.mo")
    assert list(documents) == ["program/helptext/page.txt#0#0", "program/module.py#messages#0"]
    page, messages = documents.values()
    assert page.index("ERSTER") < page.index("ZWEITER")
    assert "Not translated" not in page
    assert messages.split() == (CATALOGUE[SHORT] + CATALOGUE[OTHER]).split()


def test_parts_share_no_document_and_a_new_one_moves_no_other() -> None:
    before = divided({f"page-{i}": f"text {i}" for i in range(200)})
    after = divided({f"page-{i}": f"text {i}" for i in range(201)})
    assert sorted(document for part in before.values() for document in part) == sorted(
        f"text {i}" for i in range(200)
    )
    assert all(set(before[part]) <= set(after[part]) for part in before)
    assert 140 < len(before["training"]) < 180
    assert 10 < len(before["held-out"]) < 40


def test_long_texts_are_cut_between_paragraphs() -> None:
    paragraphs = [f"{i} " * 1000 for i in range(10, 20)]
    pieces = list(cut("page", paragraphs))
    assert [name for name, _ in pieces] == [f"page#{i}" for i in range(len(pieces))]
    assert "\n\n".join(text for _, text in pieces) == "\n\n".join(paragraphs)
    assert all(len(text) <= 6100 for _, text in pieces)


def test_a_part_is_a_file_that_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def documents() -> dict[str, str]:
        made.append(1)
        return {f"page-{i}": f"text {i}" for i in range(50)}

    text = RegistryText("A text", "CC0", lambda: "here", documents)
    monkeypatch.setattr(texts, "TEXTS", {"some": text})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parts = [text_file(f"registry:some/{part}") for part in ("training", "choosing", "held-out")]
    assert made == [1]
    rows = [json.loads(line)["text"] for file in parts for line in file.read_text().splitlines()]
    assert sorted(rows) == sorted(f"text {i}" for i in range(50))
    assert [file.name for file in parts] == [
        "some-training.jsonl",
        "some-choosing.jsonl",
        "some-held-out.jsonl",
    ]
    assert "CC0" in (parts[0].parent / "README.md").read_text()


def test_a_part_has_its_file_s_name_before_it_is_fetched() -> None:
    assert file_name("registry:german/held-out") == "german-held-out.jsonl"
    assert file_name("folder/some.txt") == "some.txt"


def test_conversations_are_rows_of_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": "où?"}, {"role": "assistant", "content": "là"}]
    text = RegistryText("Talk", "CC0", lambda: "here", lambda: {"talk": turns})
    monkeypatch.setattr(texts, "TEXTS", {"talk": text})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parts = [text_file(f"registry:talk/{part}") for part in ("training", "choosing", "held-out")]
    (line,) = [line for file in parts for line in file.read_text("utf-8").splitlines()]
    assert json.loads(line) == {"messages": turns}


def test_what_is_no_name_of_the_registry_is_itself() -> None:
    assert text_file("folder/some.txt") == Path("folder/some.txt")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("registry:portugese/training", "did you mean 'portuguese'"),
        ("registry:german", "registry:german/held-out"),
        ("registry:german/test", "registry:german/training"),
    ],
)
def test_a_wrong_name_is_one_sentence(path: str, sentence: str) -> None:
    with pytest.raises(DeepenError, match=sentence):
        text_file(path)


@pytest.mark.parametrize("text", ["english", "questions"])
def test_what_is_installed_already_needs_no_registry(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    rows = text_file(f"registry:{text}/training").read_text(encoding="utf-8")
    assert rows.count(" the ") > 1000
