"""Placements by what was measured, and what the lineage tells of it."""

import hashlib
import shutil
import statistics

import pytest
import torch

import deepen
import tiny
from deepen.base.model import open_model
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.planning.scoring.blocks import influences
from deepen.planning.scoring.calibration import read_calibration
from deepen.planning.scoring.gradients import promises
from deepen.planning.scoring.score import score

CPU = torch.device("cpu")


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
    scores = score(model, "influence", None, CPU)
    assert scores.tokens == len(own)
    expected = influences(model, text.tokens, CPU, opening=1)
    assert scores.values == pytest.approx(expected, abs=1e-6)
    assert scores.values != pytest.approx(influences(model, text.tokens, CPU), abs=1e-6)


def test_a_text_that_nothing_reads_is_refused(llama):
    for placement in (None, "top", "quality"):
        with pytest.raises(DeepenError, match="leave --calibration out"):
            deepen.plan(llama, placement=placement, calibration="text.txt")


def test_a_block_stands_where_the_text_promises_most(llama, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("The water of the river takes up what the hills give it. " * 40)
    how = {"placement": "gradient", "new_layers": 1, "calibration": str(text)}
    step = deepen.plan(llama, **how).growth.step
    assert (step.scores.by, step.scores.of, step.scores.text) == ("gradient", "gaps", "mine.txt")
    calibration = read_calibration(open_model(llama), str(text), sequences=2)
    expected = promises(open_model(llama), calibration.tokens, CPU)
    assert step.scores.values == [round(value, 6) for value in expected]
    best = max(range(5), key=lambda gap: expected[gap])
    assert step.plan[best + 1] == [best, best + 1, 0.5]


def test_as_many_blocks_as_stand_out(llama):
    request = {"method": "llama-pro", "placement": "importance", "new_layers": "auto"}
    step = deepen.plan(llama, **request).growth.step
    values = step.scores.values
    wanted = [i for i, v in enumerate(values) if 2 * v <= min(values) + statistics.median(values)]
    wanted = sorted(wanted, key=lambda i: values[i])[:3]
    assert [block[0] for block in step.plan if isinstance(block, list)] == sorted(wanted)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"placement": "gradient"}, "name the text that they are to learn by --calibration"),
        ({"new_layers": "auto"}, "name a placement by measurement .*, or a number"),
        ({"new_layers": "auto", "placement": "top"}, "name a placement by measurement"),
        ({"new_layers": "auto", "method": "solar"}, "name a placement by measurement"),
        ({"new_layers": "auto", "method": "repeat"}, "name a placement by measurement"),
        ({"new_layers": "some"}, "'new_layers' in the request cannot be 'some'"),
    ],
)
def test_what_no_score_can_say_is_one_sentence(llama, how, sentence):
    with pytest.raises(DeepenError, match=sentence):
        deepen.plan(llama, **how)


def test_a_model_that_computes_no_numbers_has_no_scores(tmp_path):
    module = tiny.model()
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    module.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DeepenError, match="computes no numbers"):
        deepen.plan(tmp_path, placement="influence")
