"""The text that a model is scored on."""

import json
import os

import pytest
import torch

import deepen
import tiny
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.planning.scoring.calibration import read_calibration


def test_the_beginning_of_a_text_is_cut_into_sequences_of_equal_length(llama, tmp_path):
    model, text = open_model(llama), tmp_path / "long.txt"
    text.write_text("word and " * 3000)
    tokens = read_calibration(model, str(text)).tokens
    assert tokens.shape == (8, 128), "no longer than the model has positions"
    ids = tiny.tokenizer()(text.read_text())["input_ids"]
    assert tokens.flatten().tolist() == ids[:1024]


def test_documents_are_read_without_what_json_puts_around_them(llama, tmp_path):
    model = open_model(llama)
    plain, rows = tmp_path / "text.txt", tmp_path / "text.jsonl"
    documents = ["The water of the river \u201cflows\u201d. " * 12, "And so on.\n" * 20]
    plain.write_text("\n\n".join(documents))
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    assert torch.equal(
        read_calibration(model, str(plain)).tokens, read_calibration(model, str(rows)).tokens
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"messages": []}', "Row 1 of 'text.jsonl' has no 'text'"),
        ("[1]", "Row 1 of 'text.jsonl' has no 'text'"),
        ('{"text": null}', "Row 1 of 'text.jsonl' has no 'text'"),
        ("{", "Row 1 of 'text.jsonl' is not valid JSON"),
        ('{"text": "' + "a" * 2**22 + '"}', "is longer than 4,194,304 characters"),
    ],
)
def test_a_row_that_is_no_document_is_one_sentence(llama, tmp_path, row, sentence):
    (tmp_path / "text.jsonl").write_text(row + "\n")
    with pytest.raises(DeepenError, match=sentence):
        read_calibration(open_model(llama), str(tmp_path / "text.jsonl"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; give one"),
        (b" \n\n", "is empty; give one"),
        (b"\xff\xfe\x00\x01" * 20, "no text in UTF-8"),
        (b"Too short.", "tokens, and scores need 32 at least"),
        (None, "cannot be read"),
    ],
)
def test_a_text_that_cannot_be_used_is_one_sentence(llama, tmp_path, content, sentence):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(DeepenError, match=sentence):
        deepen.plan(llama, placement="importance", calibration=str(text))


def test_a_pipe_is_not_waited_for(llama, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeepenError, match="is no regular file"):
        read_calibration(open_model(llama), str(tmp_path / "pipe"))
