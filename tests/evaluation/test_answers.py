"""Loss on the answers of chat rows, against plain loops over what fine-tuning would learn from."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.common.progress import silent
from deepen.evaluation import perplexity as texts
from deepen.evaluation.evaluate import evaluate
from deepen.training.data.examples import load_examples
from deepen.training.recipe import DataConfig

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = PASSAGE.split()


def talk(turns: int, words: int) -> list[dict[str, str]]:
    """Make a conversation of the passage's words."""
    return [
        {
            "role": ("user", "assistant")[number % 2],
            "content": " ".join(WORDS[number * words : (number + 1) * words]),
        }
        for number in range(turns)
    ]


MESSAGES = [{"messages": talk(turns, words)} for turns, words in ((4, 2), (2, 9), (6, 1), (2, 3))]
PAIRS = [{"prompt": "two and two is", "completion": " four ü"}, {"prompt": "a", "completion": "b"}]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template."""
    folder = tiny.save(tmp_path_factory.mktemp("chatty") / "chatty")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def by_hand(model: Path, file: Path, length: int, folder: Path) -> tuple[float, int]:
    """Sum the loss of every label that fine-tuning has, row by row; return nats and tokens."""
    module, tokenizer = tiny.load(model), AutoTokenizer.from_pretrained(model)
    data = DataConfig(path=str(file), sequence_length=length, seed=0)
    nats, tokens = 0.0, 0
    for example in load_examples(data, tokenizer, folder, silent):
        with torch.no_grad():
            logits = module(torch.tensor([example["input_ids"]])).logits[0].double()
        for place, label in enumerate(example["labels"][1:]):
            if label != -100:
                nats -= float(logits[place].log_softmax(-1)[label])
                tokens += 1
    return nats, tokens


@pytest.mark.parametrize("rows", [MESSAGES, PAIRS], ids=["messages", "pairs"])
@pytest.mark.parametrize("length", [24, 128])
def test_loss_is_that_of_the_labels_of_fine_tuning(
    chatty: Path, tmp_path: Path, rows: list[dict[str, Any]], length: int
) -> None:
    file = write(tmp_path, rows)
    (found,) = evaluate(chatty, perplexity=[file], sequence_length=length, batch_size=2).texts
    nats, tokens = by_hand(chatty, file, length, tmp_path / "cache")
    assert (found.counted, found.tokens) == ("answers", tokens)
    assert found.loss_nats_per_token == pytest.approx(nats / tokens, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.text_bytes, rel=1e-6)


def test_bytes_are_the_answers_own(chatty: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    text = texts.read(write(tmp_path, MESSAGES), tokenizer)
    answers = [turn["content"] for row in MESSAGES for turn in row["messages"][1::2]]
    assert text.text_bytes == sum(len(f"{answer}</>\n".encode()) for answer in answers)
    # The end of a text is a special token, which has no bytes.
    text = texts.read(write(tmp_path, PAIRS), tokenizer)
    assert text.text_bytes == len(" four üb".encode())


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.ndjson", "rows.json"])
def test_conversations_of_sharegpt_are_chats_too(chatty: Path, tmp_path: Path, name: str) -> None:
    speakers = {"user": "human", "assistant": "gpt"}
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": speakers[t["role"]], "value": t["content"]} for t in row]}
        for row in (row["messages"] for row in MESSAGES)
    ]
    rows.insert(1, {"conversations": None})
    lines = [json.dumps(row) for row in rows]
    text = f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines)
    (tmp_path / name).write_text(f"\ufeff{text}", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    found = texts.read(tmp_path / name, tokenizer)
    expected = texts.read(write(tmp_path, MESSAGES), tokenizer)
    assert (found.documents, found.labels) == (expected.documents, expected.labels)


def test_batches_do_not_matter(chatty: Path, tmp_path: Path) -> None:
    file = write(tmp_path, MESSAGES * 3)
    one, many = (evaluate(chatty, perplexity=[file], batch_size=size).texts[0] for size in (1, 64))
    assert one.loss_nats_per_token == pytest.approx(many.loss_nats_per_token, rel=1e-6)


@pytest.mark.parametrize("limit", [1, 11, 40])
def test_max_tokens_counts_answers(chatty: Path, tmp_path: Path, limit: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    file = write(tmp_path, MESSAGES)
    whole, cut = texts.read(file, tokenizer), texts.read(file, tokenizer, limit)
    assert whole.labels is not None
    assert cut.labels is not None
    assert whole.tokens > 40
    assert cut.tokens == limit
    assert all(labels[-1] != -100 for labels in cut.labels)
    for short, long in zip(cut.labels, whole.labels, strict=False):
        assert short == long[: len(short)]


def test_documents_beside_messages_are_documents(chatty: Path, tmp_path: Path) -> None:
    rows = [{"text": PASSAGE[:200], "messages": talk(2, 3)}]
    (found,) = evaluate(chatty, perplexity=[write(tmp_path, rows)]).texts
    assert found.counted == "all"
    assert found.text_bytes > 190


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        (MESSAGES, 4, "no answer within 4 tokens; raise sequence_length"),
        ([*MESSAGES, {"messages": []}], 128, "Line 5 of rows.jsonl holds no messages"),
        ([*MESSAGES, {"prompt": "a"}], 128, "Line 5 of rows.jsonl lacks the column 'messages'"),
    ],
)
def test_bad_rows_are_one_sentence(
    chatty: Path, tmp_path: Path, rows: list[dict[str, Any]], length: int, message: str
) -> None:
    with pytest.raises(DeepenError, match=message) as caught:
        evaluate(chatty, perplexity=[write(tmp_path, rows)], sequence_length=length)
    assert "\n" not in str(caught.value)


def test_messages_need_a_template_and_pairs_do_not(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="holds messages, but the model has no chat"):
        evaluate(llama, perplexity=[write(tmp_path, MESSAGES)])
    (found,) = evaluate(llama, perplexity=[write(tmp_path, PAIRS)]).texts
    assert found.counted == "answers"
