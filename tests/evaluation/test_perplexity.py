"""Loss on text against plain loops over the model's logits."""

import csv
import gzip
import io
import json
import math
import shutil
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.evaluation import perplexity as texts
from deepen.evaluation.evaluate import evaluate
from deepen.records.evaluation import EvalRecord
from deepen.training.data import files

DOCUMENTS = [PASSAGE[:300], "é", PASSAGE[300:420], "Non è vero."]


@pytest.fixture(scope="module")
def passage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "passage.txt"
    file.write_text(PASSAGE, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "lines.jsonl"
    rows = (json.dumps({"text": document, "id": 3}) for document in DOCUMENTS)
    file.write_text("\n\n".join(rows), encoding="utf-8")
    return file


def by_hand(folder: Path, documents: list[str], window: int) -> tuple[float, int, int]:
    """Predict token after token, each alone; return nats, tokens and bytes."""
    model, tokenizer = tiny.load(folder), AutoTokenizer.from_pretrained(folder)
    nats, tokens, nbytes = 0.0, 0, 0
    for document in documents:
        ids = tokenizer(document)["input_ids"]
        for position in range(1, len(ids)):
            first = (position - 1) // window * window
            with torch.no_grad():
                logits = model(torch.tensor([ids[first:position]])).logits[0, -1].double()
            nats -= float(logits.log_softmax(-1)[ids[position]])
            tokens += 1
        # Byte-level tokens, each letter of which is one byte.
        pieces = tokenizer.convert_ids_to_tokens(ids)
        nbytes += sum(len(piece) for piece in pieces[1:])
    return nats, tokens, nbytes


def test_every_window_begins_with_bos_where_the_tokenizer_does(
    llama: Path, lines: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bos"
    shutil.copytree(llama, folder)
    tokenizer = tiny.tokenizer("<eos> $A")
    tokenizer.save_pretrained(folder)
    model, bare = tiny.load(folder), tiny.tokenizer()
    (found,) = evaluate(folder, perplexity=[lines], sequence_length=8, batch_size=3).texts
    (without,) = evaluate(llama, perplexity=[lines], sequence_length=7, batch_size=3).texts
    nats = 0.0
    for document in DOCUMENTS:
        ids = bare(document)["input_ids"]
        for start in range(0, len(ids) - 1, 7):
            window = torch.tensor([[tokenizer.eos_token_id, *ids[start : start + 8]]])
            with torch.no_grad():
                logits = model(window).logits[0, 1:-1].double()
            nats += float(cross_entropy(logits, window[0, 2:], reduction="sum"))
    assert (found.tokens, found.text_bytes) == (without.tokens, without.text_bytes)
    assert found.loss_nats_per_token == pytest.approx(nats / found.tokens, rel=1e-6)
    assert found.loss_nats_per_token != pytest.approx(without.loss_nats_per_token, rel=1e-3)


@pytest.mark.parametrize("window", [7, 128])
def test_loss_is_that_of_a_plain_loop(llama: Path, passage: Path, window: int) -> None:
    (found,) = evaluate(llama, perplexity=[passage], sequence_length=window, batch_size=3).texts
    nats, tokens, nbytes = by_hand(llama, [PASSAGE], window)
    assert (found.tokens, found.text_bytes) == (tokens, nbytes)
    assert found.loss_nats_per_token == pytest.approx(nats / tokens, rel=1e-6)
    assert found.token_perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / nbytes, rel=1e-6)


def test_documents_of_a_jsonl_file_do_not_see_each_other(llama: Path, lines: Path) -> None:
    (found,) = evaluate(llama, perplexity=[lines], sequence_length=32, batch_size=8).texts
    nats, tokens, _ = by_hand(llama, DOCUMENTS, 32)
    assert found.tokens == tokens
    assert found.loss_nats_per_token == pytest.approx(nats / tokens, rel=1e-6)


def test_batches_do_not_matter(llama: Path, lines: Path, passage: Path) -> None:
    one, many = (
        evaluate(llama, perplexity=[lines, passage], sequence_length=16, batch_size=size)
        for size in (1, 64)
    )
    for a, b in zip(one.texts, many.texts, strict=True):
        assert a.loss_nats_per_token == pytest.approx(b.loss_nats_per_token, rel=1e-6)
        assert a.model_dump(
            exclude={"loss_nats_per_token", "token_perplexity", "bits_per_byte"}
        ) == (b.model_dump(exclude={"loss_nats_per_token", "token_perplexity", "bits_per_byte"}))


def test_documents_are_batched_by_length_alone(llama: Path, lines: Path) -> None:
    """Losses of earlier studies are held to the last bit."""
    model, tokenizer = tiny.load(llama), AutoTokenizer.from_pretrained(llama)
    cut = [tokenizer(d)["input_ids"] for d in DOCUMENTS]
    windows = [ids[at : at + 17] for ids in cut for at in range(0, len(ids) - 1, 16)]
    windows.sort(key=len, reverse=True)
    nats, tokens = 0.0, 0
    for batch in (windows[at : at + 4] for at in range(0, len(windows), 4)):
        width = len(batch[0])
        padded = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in batch])
        with torch.no_grad():
            logits = model(padded[:, :-1], use_cache=False).logits
        sums = []
        for ids, row in zip(batch, logits, strict=True):
            losses = -row.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
            sums.append(float(losses.double().sum()))
            tokens += len(ids) - 1
        nats += sum(sums)
    (found,) = evaluate(llama, perplexity=[lines], sequence_length=16, batch_size=4).texts
    assert found.loss_nats_per_token == nats / tokens


@pytest.mark.parametrize("limit", [1, 50])
def test_max_tokens_cuts_tokens_and_bytes_alike(llama: Path, passage: Path, limit: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    ids = tokenizer(PASSAGE)["input_ids"]
    text = texts.read(passage, tokenizer, limit)
    assert [*map(list, text.documents)] == [ids[: limit + 1]]
    assert text.text_bytes == len(tokenizer.decode(ids[1 : limit + 1]).encode())


def test_max_tokens_runs_on_over_documents(llama: Path, lines: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    first, second, *_ = texts.read(lines, tokenizer).documents
    text = texts.read(lines, tokenizer, len(first))
    assert text.documents == [first, second[:2]]
    assert texts.read(lines, tokenizer, len(first) - 1).documents == [first]


def test_record_says_what_was_measured(llama: Path, passage: Path) -> None:
    record = evaluate(llama, perplexity=[passage], batch_size=2, seed=5)
    assert EvalRecord.model_validate_json(record.model_dump_json()) == record
    assert (record.model, record.seed, record.batch_size) == ("tiny-llama", 5, 2)
    assert record.versions.keys() >= {"deepen", "torch", "transformers"}
    assert record.texts[0].file == "passage.txt"
    assert len(record.fingerprint) == len(record.texts[0].sha256) == 64


@pytest.mark.parametrize("suffix", [".NDJSON", ".JSONL", ".jsonl.gz", ".csv", ".json", ".parquet"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_rows_are_read_as_training_reads_them(
    llama: Path, lines: Path, tmp_path: Path, suffix: str, mark: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    expected = texts.read(lines, tokenizer)
    rows: list[str | None] = [DOCUMENTS[0], None, *DOCUMENTS[1:]]
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": rows}), file)
    else:
        given = [row or "" for row in rows] if suffix == ".csv" else rows
        content = mark + written(given, suffix.lower().removesuffix(".gz"))
        data = content.encode()
        file.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    found = texts.read(file, tokenizer)
    assert (found.documents, found.text_bytes) == (expected.documents, expected.text_bytes)


def written(documents: list[str | None], suffix: str) -> str:
    """Write rows with one column as a file of a kind."""
    if suffix == ".csv":
        rows = [{"text": document} for document in documents]
        stream = io.StringIO()
        table = csv.DictWriter(stream, ["text"], quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
        return stream.getvalue()
    objects = [json.dumps({"text": document}) for document in documents]
    return f"[{','.join(objects)}]" if suffix == ".json" else "\n".join(objects)


def test_long_texts_in_pieces_have_the_tokens_of_the_whole(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before a space or behind a line, this tokenizer makes the same tokens of the pieces."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    line = "\ufeff" + " ".join(PASSAGE.split())
    (tmp_path / "line.txt").write_text(line, encoding="utf-8")
    (tmp_path / "line.jsonl").write_text(json.dumps({"text": line[1:]}))
    whole = texts.read(tmp_path / "line.jsonl", tokenizer)
    limits = [None, 1, 20, 150, whole.tokens - 1]
    wholes = [texts.read(tmp_path / "line.jsonl", tokenizer, limit) for limit in limits]
    monkeypatch.setattr(files, "PIECE_CHARACTERS", 100)
    for name in ("line.txt", "line.jsonl"):
        for limit, expected in zip(limits, wholes, strict=True):
            found = texts.read(tmp_path / name, tokenizer, limit)
            assert found.documents == expected.documents
            assert found.text_bytes == expected.text_bytes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt' cannot be read (No such file or directory)."),
        ("empty.txt", "", "empty.txt' is empty; give one to predict."),
        ("short.txt", "a", "holds no document of at least 2 tokens"),
        ("short.jsonl", '{"text": "a"}\n{"text": ""}', "holds no document of at least 2 tokens"),
        (
            "key.jsonl",
            '{"text": "ab"}\n{"content": "ab"}',
            "Line 2 of .* has no 'text' .it has content",
        ),
        ("row.jsonl", "[1]", "Line 1 of .* is not an object with columns"),
        ("broken.jsonl", '{"text": "ab"', "Line 1 of .* is not valid JSON"),
        ("number.jsonl", '{"text": 5}', "Line 1 of number.jsonl holds a number in 'text'"),
        ("latin.txt", "é".encode("latin-1") * 9, "latin.txt' is not readable UTF-8 text .*codec"),
    ],
)
def test_bad_texts(
    llama: Path, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = message if ".*" in message else message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DeepenError, match=message) as caught:
        evaluate(llama, perplexity=[file])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_bad_requests(llama: Path, passage: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="nothing to evaluate"):
        evaluate(llama)
    with pytest.raises(DeepenError, match="sequence_length is 129, but tiny-llama has only 128"):
        evaluate(llama, perplexity=[passage], sequence_length=129)
    with pytest.raises(DeepenError, match="batch_size must be at least 1, not 0"):
        evaluate(llama, perplexity=[passage], batch_size=0)
    tiny.model().save_pretrained(tmp_path / "bare")
    with pytest.raises(DeepenError, match="bare has no tokenizer"):
        evaluate(tmp_path / "bare", perplexity=[passage])


def test_broken_weights_are_named(tmp_path: Path, passage: Path) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DeepenError, match="nan nats per token; its weights are broken"):
        evaluate(tmp_path, perplexity=[passage])
