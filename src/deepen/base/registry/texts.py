"""Texts to train and to measure on, in parts that share no paragraph.

``registry:portuguese/training`` names a part of a text: ``training``, ``choosing`` for what is
chosen by trying it, such as a learning rate, and ``held-out``. Each is a ``.jsonl`` file of
documents, or of conversations.
"""

import ast
import gettext
import hashlib
import importlib.util
import inspect
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from deepen.base.registry import PREFIX, file_name, named
from deepen.base.registry.conversations import Conversations, chitchat
from deepen.base.registry.packages import Wheel, cache, fetched
from deepen.common.errors import DeepenError, unknown

Documents = Mapping[str, str]
"""Name → text."""
DocumentT = TypeVar("DocumentT")

_FORMAT = 1  # of what is written; another one is another place in the cache
_LONGEST, _SHORTEST = 6000, 300  # characters of a document
_WORKED_EXAMPLES = ("tasks", "mmlu", "flan_cot_fewshot", "_cot_prompts.json")
_PARTS = {"held-out": 0.12, "choosing": 0.08, "training": 0.8}
"""Part → share of the documents."""


@dataclass(frozen=True)
class RegistryText:
    """A text of known origin."""

    title: str
    """What it is."""
    licence: str
    """Its licence."""
    source: Callable[[], str]
    """Tells what it is taken from, exactly."""
    documents: Callable[[], Documents | Conversations]
    """Reads it."""


_MERCURIAL = Wheel(
    "mercurial",
    "7.2.4",
    "851e0e7036e75157a1cd517799a2e727b3ec6295a3a59c5667ad7004f121b317",
    platform=(
        "--platform=manylinux2014_x86_64",
        "--python-version=3.11",
        "--implementation=cp",
        "--abi=cp311",
    ),
)
_CHITCHAT = Wheel(
    "chitchat-dataset", "0.9.0", "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"
)


def text_file(path: str | Path) -> Path:
    """Return the file that a path means: one of the cache for ``registry:TEXT/PART``, else itself.

    Raises:
        DeepenError: There is no such text or part, or the registry cannot be reached.
    """
    name = named(path)
    if name is None:
        return Path(path)
    text, _, part = name.partition("/")
    if text not in TEXTS:
        raise unknown("text of the registry", text, TEXTS)
    if part not in _PARTS:
        choices = ", ".join(f"{PREFIX}{text}/{one}" for one in sorted(_PARTS))
        raise DeepenError(f"{str(path)!r} names no part of a text; give one of {choices}.")
    return _made(text) / file_name(path)


def _made(name: str) -> Path:
    """Return a text's folder in the cache, made on first use."""
    text = TEXTS[name]
    source = text.source()
    key = hashlib.sha256(f"{source} {_FORMAT}".encode()).hexdigest()[:12]
    folder = cache() / "texts" / f"{name}-{key}"
    if folder.is_dir():
        return folder
    parts = divided(text.documents())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "text"
        made.mkdir()
        for part, documents in parts.items():
            lines = (json.dumps(_row(document), ensure_ascii=False) for document in documents)
            content = "".join(f"{line}\n" for line in lines)
            (made / file_name(f"{PREFIX}{name}/{part}")).write_text(
                content, encoding="utf-8", newline="\n"
            )
        about = f"{text.title}, from {source}. Licence: {text.licence}.\n"
        (made / "README.md").write_text(about, encoding="utf-8")
        # Another process may have been first; what it made is the same.
        if not folder.is_dir():
            made.replace(folder)
    return folder


def _row(document: object) -> dict[str, object]:
    """Return a line of the file: a document's text, or a conversation's messages."""
    return {"text" if isinstance(document, str) else "messages": document}


def divided(documents: Mapping[str, DocumentT]) -> dict[str, list[DocumentT]]:
    """Divide documents into parts by a hash of their names, so that one more moves no other.

    Returns:
        Part → its documents, in the order of their names.
    """
    parts: dict[str, list[DocumentT]] = {part: [] for part in _PARTS}
    for name in sorted(documents):
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        for part, share in _PARTS.items():
            draw -= share
            if draw < 0 or part == "training":
                parts[part].append(documents[name])
                break
    return parts


def cut(name: str, paragraphs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield documents of whole paragraphs, none much longer than a few pages, none a mere line."""
    pieces: list[list[str]] = [[]]
    for paragraph in paragraphs:
        if sum(map(len, pieces[-1])) + len(paragraph) > _LONGEST:
            pieces.append([])
        pieces[-1].append(paragraph)
    for number, piece in enumerate(pieces):
        text = "\n\n".join(piece)
        if len(text) >= _SHORTEST:
            yield f"{name}#{number}", text


def translated_manual(wheel: Path, catalogue: str) -> Documents:
    """Put a program's translated manual together, from its English texts and a catalogue.

    The catalogue translates paragraphs; which ones make a text, and in which order, the program's
    own help pages and docstrings tell. A paragraph without a translation is left out, and one that
    stands in several texts is in the first of them alone. A module's short messages are one text.

    Args:
        wheel: The program's wheel.
        catalogue: Member of it, a GNU ``.mo`` file.
    """
    documents: dict[str, str] = {}
    seen: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        translation = gettext.GNUTranslations(io.BytesIO(archive.read(catalogue)))
        for member in sorted(archive.namelist()):
            messages: list[str] = []
            for number, text in enumerate(_texts(member, archive)):
                paragraphs = [p for p in _translated(text, translation) if p not in seen]
                seen.update(paragraphs)
                whole = inspect.cleandoc("\n\n".join(paragraphs)).split("\n\n")
                if sum(map(len, whole)) < _SHORTEST:
                    messages += whole
                else:
                    documents |= cut(f"{member}#{number}", whole)
            documents |= cut(f"{member}#messages", filter(_is_sentence, messages))
    return documents


def _is_sentence(message: str) -> bool:
    """Tell what a program says from names of options and the like."""
    return len(message.split()) >= 5


def _texts(member: str, archive: zipfile.ZipFile) -> Iterator[str]:
    """Yield a help page, or the strings of a module."""
    if member.endswith(".txt") and "/helptext/" in member:
        yield archive.read(member).decode()
    elif member.endswith(".py"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have invalid escapes
            tree = ast.parse(archive.read(member))
        for node in ast.walk(tree):
            value = node.value if isinstance(node, ast.Constant) else None
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str) and _is_sentence(text):
                yield text


def _translated(text: str, translation: gettext.GNUTranslations) -> list[str]:
    """Return the translations of a text's paragraphs, indented as in its source or not."""

    def found(paragraphs: list[str]) -> list[str]:
        # The translation of nothing is the catalogue's own head.
        pairs = [(p, translation.gettext(p)) for p in paragraphs if p]
        return [after for before, after in pairs if after != before]

    return max(found(text.split("\n\n")), found(inspect.cleandoc(text).split("\n\n")), key=len)


def _mercurial(language: str) -> Documents:
    """Read Mercurial's manual in a language."""
    return translated_manual(fetched(_MERCURIAL), f"mercurial/locale/{language}/LC_MESSAGES/hg.mo")


def _python_manual() -> Documents:
    """Read what ``help()`` knows beside docstrings: pages of Python's language reference."""
    from pydoc_data.topics import topics

    return dict(
        document for name, text in topics.items() for document in cut(name, text.split("\n\n"))
    )


def _python_source() -> str:
    """Name this Python's manual, which differs between versions."""
    from pydoc_data.topics import topics

    digest = hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()
    return f"pydoc_data.topics, as it comes with this Python, {digest[:12]}"


def _worked_examples() -> Documents:
    """Read the worked examples that lm-evaluation-harness has for MMLU."""
    prompts = json.loads(_worked_examples_file().read_text(encoding="utf-8"))
    return dict(
        document
        for subject, prompt in prompts.items()
        for document in cut(subject, prompt.strip().split("\n\n"))
    )


def _worked_examples_source() -> str:
    """Name the harness's file, which may differ between versions."""
    digest = hashlib.sha256(_worked_examples_file().read_bytes()).hexdigest()
    return f"lm_eval, {'/'.join(_WORKED_EXAMPLES)}, {digest[:12]}"


def _worked_examples_file() -> Path:
    """Find the file without running the harness, which takes seconds."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.joinpath(*_WORKED_EXAMPLES)


_GPL = "GNU General Public License, version 2 or later"

TEXTS: Mapping[str, RegistryText] = {
    "portuguese": RegistryText(
        title="Mercurial's manual in Brazilian Portuguese",
        licence=_GPL,
        source=lambda: _MERCURIAL.pin,
        documents=lambda: _mercurial("pt_BR"),
    ),
    "german": RegistryText(
        title="Mercurial's manual in German, as far as it is translated",
        licence=_GPL,
        source=lambda: _MERCURIAL.pin,
        documents=lambda: _mercurial("de"),
    ),
    "english": RegistryText(
        title="Pages of the Python language reference",
        licence="PSF License",
        source=_python_source,
        documents=_python_manual,
    ),
    "conversations": RegistryText(
        title=(
            "Small talk that pairs of people, mostly students, typed to each other in 2018 for the "
            "Chit-Chat Challenge of Brigham Young University; whoever begins stands as the user, "
            "the other one as the assistant"
        ),
        licence="MIT",
        source=lambda: _CHITCHAT.pin,
        documents=lambda: chitchat(fetched(_CHITCHAT)),
    ),
    "questions": RegistryText(
        title="Questions of MMLU's 57 subjects, answered step by step",
        licence="MIT License",
        source=_worked_examples_source,
        documents=_worked_examples,
    ),
}
"""Name → text."""
