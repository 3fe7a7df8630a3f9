"""Scores of blocks on a text, against the model run plainly with one block left out."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

import deepen
import shrink
import tiny
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.planning import scoring
from deepen.planning.scoring import importances, influences, read_calibration

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "mixtral", "mamba", "gemma3_text")
IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A tiny model, and the same opened."""
    module = shrink.model(request.param)
    return module, as_model(ModuleSource(module, module.config.to_dict()))


@contextmanager
def seen(block: Any, act: Any) -> Iterator[None]:
    """Let a function of a block's input and output say what the block returns."""
    inputs = []

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())

    def leave(_: Any, args: Any, output: Any) -> Any:
        state = act(inputs.pop(), output[0] if isinstance(output, tuple) else output)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        block.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_loss(module: Any) -> float:
    with torch.no_grad():
        logits = module(IDS, use_cache=False).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))


@pytest.mark.parametrize("together", [1, 4])
def test_importance_is_the_loss_without_the_block_minus_the_loss(pair, together, monkeypatch):
    module, model = pair
    monkeypatch.setattr(scoring, "_TOGETHER", together)
    found, base = importances(model, IDS, CPU), plain_loss(module)
    for block, importance in zip(
        module.get_submodule(model.blocks_path).children(), found, strict=True
    ):
        with seen(block, lambda before, after: before):
            assert plain_loss(module) - base == pytest.approx(importance, abs=1e-5)


def test_influence_is_one_minus_the_mean_cosine_of_input_and_output(pair):
    module, model = pair
    expected: list[float] = []

    def measure(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        expected.append(1 - float(cosine_similarity(before, after, dim=-1).mean()))
        return after

    found = influences(model, IDS, CPU)
    for block in module.get_submodule(model.blocks_path).children():
        with seen(block, measure):
            plain_loss(module)
    assert found == pytest.approx(expected, abs=1e-5)


def test_only_blocks_above_a_bypassed_one_run_again(llama, monkeypatch):
    """Blocks below a group are not run, and so not fetched."""
    model, fetched = open_model(llama), []
    load = type(model.in_memory.weights).__getitem__

    def counting(self: Any, name: str) -> torch.Tensor:
        fetched.append(name)
        return load(self, name)

    monkeypatch.setattr(scoring, "_TOGETHER", 2)
    monkeypatch.setattr(type(model.in_memory.weights), "__getitem__", counting)
    importances(model, IDS, CPU)
    times = [fetched.count(f"model.layers.{i}.mlp.down_proj.weight") for i in range(6)]
    assert times == [2, 2, 3, 3, 4, 4]


def test_blocks_are_as_they_were_afterwards(llama):
    model = open_model(llama)
    assert importances(model, IDS, CPU) == importances(model, IDS, CPU)
    blocks = model.in_memory.module.get_submodule(model.blocks_path).children()
    assert not any("forward" in vars(block) or block._forward_hooks for block in blocks)


@pytest.mark.parametrize("name", ["importance", "importance-high", "influence", "influence-high"])
def test_new_blocks_stand_where_scores_say(llama, name):
    step = deepen.plan(llama, method="llama-pro", new_layers=2, placement=name).growth.step
    values = step.scores.values
    order = sorted(range(6), key=lambda i: values[i], reverse=name.endswith("-high"))
    assert [block[0] for block in step.plan if isinstance(block, list)] == sorted(order[:2])
    assert step.scores.by == name.partition("-")[0]
    assert step.scores.text_sha256 == hashlib.sha256(PASSAGE.encode()).hexdigest()


def test_scores_and_text_stand_in_the_lineage_and_are_grown_again(llama, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("The water of the river takes up what the hills give it. " * 40)
    how = {"placement": "influence", "new_layers": 1, "calibration": str(text)}
    grown = deepen.grow(llama, tmp_path / "grown", method="llama-pro", **how).step
    assert grown.scores.text == "mine.txt"
    assert grown.scores.text_sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    planned = deepen.plan(llama, method="llama-pro", **how).growth.step
    assert (planned.scores, planned.plan) == (grown.scores, grown.plan)
    assert deepen.verify(llama, tmp_path / "grown").passed
    assert deepen.reproduce(tmp_path / "grown", base=llama).passed
    assert deepen.plan(llama, placement="top").growth.step.scores is None


def test_quality_is_recorded_too(llama):
    step = deepen.plan(llama, placement="quality", new_layers=1).growth.step
    assert step.new_blocks == [step.scores.values.index(max(step.scores.values)) + 1]
    assert (step.scores.of, step.scores.text) == ("gaps", None)


def test_the_beginning_of_a_text_is_cut_into_sequences_of_equal_length(llama, tmp_path):
    model, text = open_model(llama), tmp_path / "long.txt"
    text.write_text("word and " * 3000)
    tokens = read_calibration(model, str(text)).tokens
    assert tokens.shape == (8, 128), "no longer than the model has positions"
    ids = tiny.tokenizer()(text.read_text())["input_ids"]
    assert tokens.flatten().tolist() == ids[:1024]


def test_bos_stands_before_every_sequence_and_has_no_influence(llama, tmp_path):
    folder = tmp_path / "bos"
    shutil.copytree(llama, folder)
    tokenizer = tiny.tokenizer("<eos> $A")
    tokenizer.save_pretrained(folder)
    model = open_model(folder)
    text = read_calibration(model, None)
    assert (text.tokens[:, 0] == tokenizer.eos_token_id).all()
    ids = tiny.tokenizer()(PASSAGE)["input_ids"]
    own = text.tokens[:, 1:].flatten().tolist()
    assert own == ids[: len(own)]
    scores = scoring.score_blocks(model, "influence", None, CPU)
    assert scores.tokens == len(own)
    expected = influences(model, text.tokens, CPU, opening=1)
    assert scores.values == pytest.approx(expected, abs=1e-6)
    assert scores.values != pytest.approx(influences(model, text.tokens, CPU), abs=1e-6)


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


def test_a_text_that_nothing_reads_is_refused(llama):
    for placement in (None, "top", "quality"):
        with pytest.raises(DeepenError, match="leave --calibration out"):
            deepen.plan(llama, placement=placement, calibration="text.txt")


def test_a_model_that_computes_no_numbers_has_no_scores(tmp_path):
    module = tiny.model()
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    module.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DeepenError, match="computes no numbers"):
        deepen.plan(tmp_path, placement="influence")
