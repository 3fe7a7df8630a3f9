"""Learning rates of both stages: the second is searched on what the first one's rate gives."""

import json

import pytest
import torch

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.common.progress import silent
from deepen.comparison.rates import searched
from deepen.comparison.results import read_rates, read_records
from deepen.comparison.run import compare
from deepen.comparison.study import Study, checked
from deepen.evaluation.evaluate import evaluate
from deepen.training.recipe import Recipe
from deepen.training.run import train

SEED = 9


def given(folder, **changes):
    search = {"seed": SEED, "most": 2, "max_tokens": 50}
    tree = {
        "base": str(folder / "base"),
        "arms": ["base"],
        "data": {"path": str(folder / "passage.txt"), "sequence_length": 32},
        "training": {"max_steps": 2, "batch_size": 4, "report_to": "none"},
        "rates": search | {"grid": [1e-3, 4e-3], "text": str(folder / "passage.txt")},
        "fine_tuning": {
            "data": {"path": str(folder / "rows.jsonl"), "sequence_length": 32},
            "training": {"max_steps": 2, "batch_size": 4, "report_to": "none"},
            "rates": search | {"grid": [5e-4, 2e-3], "text": str(folder / "rows.jsonl")},
        },
        "evaluation": {"old": str(folder / "rows.jsonl"), "max_tokens": 50},
        "output": str(folder / "study"),
    }
    return Study.model_validate(tree | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, a text, and rows to fine-tune on."""
    folder = tmp_path_factory.mktemp("rates")
    tiny.save(folder / "base", dtype=torch.float32)
    (folder / "passage.txt").write_text(PASSAGE)
    words = PASSAGE.split()
    pairs = zip(words[::2], words[1::2], strict=False)
    rows = (json.dumps({"prompt": f"after {a} comes", "completion": f" {b}"}) for a, b in pairs)
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """The study's summary, its one record and what it told."""
    told = []
    summary = compare(given(folder), tell=told.append)
    (record,) = read_records(folder / "study")
    return summary, record, told


def best(tried):
    return float(min(tried, key=tried.get))


def test_both_stages_train_at_the_rates_that_were_found(folder, done):
    summary, record, told = done
    assert summary.rates == read_rates(folder / "study")
    assert summary.fine_tuning_rates == read_rates(folder / "study", "sft")
    first, second = summary.rates["base"], summary.fine_tuning_rates["base"]
    assert [set(map(float, tried)) for tried in (first, second)] == [{1e-3, 4e-3}, {5e-4, 2e-3}]
    assert record.train.recipe["training"]["learning_rate"] == best(first)
    assert record.fine_tuning.recipe["training"]["learning_rate"] == best(second)
    assert record.after_fine_tuning.texts[0].counted == "answers"
    assert [sentence for sentence in told if sentence.endswith("after fine-tuning")]


def test_fine_tuning_begins_where_pre_training_at_its_own_rate_ends(folder, done, tmp_path):
    summary, _, _ = done
    study = given(folder)
    model = study.base
    rates = {"cpt": best(summary.rates["base"]), "sft": 2e-3}
    for stage, part in (("cpt", study), ("sft", study.fine_tuning)):
        training = part.training.model_copy(
            update={"learning_rate": rates[stage], "trains": "everything"}
        )
        recipe = Recipe(
            model=str(model),
            data=part.data,
            training=training,
            seed=SEED,
            output=str(tmp_path / stage),
        )
        train(recipe, stage, progress=silent)
        model = tmp_path / stage / "model"
    (text,) = evaluate(model, perplexity=[folder / "rows.jsonl"], max_tokens=50).texts
    found = summary.fine_tuning_rates["base"]["0.002"]
    assert found == pytest.approx(text.loss_nats_per_token, rel=1e-6)


def test_an_arm_s_own_rate_of_a_stage_is_not_searched(folder):
    own = {"method": "base", "label": "own", "fine_tuning": {"learning_rate": 1e-4}}
    study = given(folder, arms=[own])
    (arm,) = study.all_arms
    assert (searched(study, arm, "cpt"), searched(study, arm, "sft")) == (True, False)
    plain = given(folder, fine_tuning=None)
    assert not searched(plain, plain.all_arms[0], "sft")


def test_the_search_of_fine_tuning_has_a_seed_of_its_own(folder):
    study = given(folder, seeds=[SEED], rates=None)
    with pytest.raises(DeepenError, match=r"fine_tuning\.rates\.seed"):
        checked(study)


def test_a_text_that_cannot_be_scored_ends_a_study_before_it_begins(folder, tmp_path):
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "talk.jsonl").write_text(json.dumps(talk))
    for name, sentence in (("talk.jsonl", "no chat template"), ("gone.txt", "cannot be read")):
        study = given(folder, evaluation={"old": str(folder / name)}, output=str(tmp_path / "out"))
        with pytest.raises(DeepenError, match=sentence):
            compare(study)
        assert not (tmp_path / "out").exists()
