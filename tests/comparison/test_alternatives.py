"""A whole study on a tiny base: alternatives, replay, learning rates of their own."""

import json

import pytest
import torch

import tiny
from deepen.base.text import PASSAGE
from deepen.comparison.results import read_rates, read_records
from deepen.comparison.run import compare
from deepen.comparison.study import Study

ARMS = [
    {"method": "base", "label": "trained on"},
    {"method": "lora", "replay": 0.25},
    "top-blocks",
    "wider",
    "opt-deus",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The study's summary, its records and what it told."""
    folder = tmp_path_factory.mktemp("alternatives")
    tiny.save(folder / "base", dtype=torch.float32)
    words = PASSAGE.split()
    texts = {"new": words[::-1] * 4, "old": words * 4, "choosing": words[1::2], "held": words[::-1]}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(" ".join(text))
    given = {
        "base": str(folder / "base"),
        "arms": ARMS,
        "new_layers": 2,
        "data": {"path": str(folder / "new.txt"), "sequence_length": 32},
        "replay": str(folder / "old.txt"),
        "training": {"max_steps": 4, "batch_size": 4, "report_to": "none"},
        "rates": {
            "grid": [1e-3, 4e-3],
            "text": str(folder / "choosing.txt"),
            "seed": 9,
            "most": 3,
        },
        "evaluation": {
            "new": str(folder / "held.txt"),
            "old": str(folder / "old.txt"),
            "max_tokens": 64,
        },
        "alignment": False,
        "output": str(folder / "study"),
    }
    told = []
    summary = compare(Study.model_validate(given), jobs=2, tell=told.append)
    return summary, read_records(folder / "study"), told, folder / "study"


def test_every_arm_is_recorded_with_its_role_and_its_own_rate(done):
    summary, records, told, folder = done
    assert (
        {r.arm: r.role for r in records}
        == summary.roles
        == {
            "trained on": "reference",
            "lora (replay=0.25)": "alternative",
            "top-blocks": "alternative",
            "wider": "alternative",
            "opt-deus": "grown",
        }
    )
    assert read_rates(folder) == summary.rates
    for record in records:
        tried = {float(rate): loss for rate, loss in summary.rates[record.arm].items()}
        assert {1e-3, 4e-3} <= tried.keys()
        assert len(tried) == 3, "the best of two lies at an end"
        best = min(tried, key=tried.get)
        assert record.train.recipe["training"]["learning_rate"] == best
    assert sum("loss" in sentence for sentence in told) >= len(ARMS)
    assert not (folder / "search").exists()


def test_the_others_are_held_to_the_reference_on_new_and_old_text(done):
    summary, records, _, _ = done
    against = [d for d in summary.differences if d.other == "trained on"]
    assert {d.arm for d in against} == {r.arm for r in records} - {"trained on"}
    for record in records:
        assert [(text.file, text.side) for text in record.after.texts] == [
            ("held.txt", "new"),
            ("old.txt", "old"),
        ]


def test_equal_parameters_and_what_is_the_base_s_function_has_its_scores(done):
    _, records, _, _ = done
    of = {record.arm: record for record in records}
    grown = of["opt-deus"].train.trainable_parameters
    assert of["top-blocks"].train.trainable_parameters == grown
    for name in ("lora (replay=0.25)", "wider"):
        assert 0.9 * grown < of[name].train.trainable_parameters <= grown
    losses = [record.before.texts[0].loss_nats_per_token for record in records]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    prints = {record.before.fingerprint for record in records}
    assert len(prints) == 3, "the base, the wider and the grown one"
    assert [s.sequences for s in of["lora (replay=0.25)"].train.sources] == [12, 4]


def test_the_resolved_study_says_what_was_chosen(done):
    summary, _, _, _ = done
    arms = {arm["label"]: arm["training"] for arm in summary.study["arms"]}
    assert arms["wider"]["neurons"] >= 1
    assert arms["lora (replay=0.25)"]["lora"]["blocks"] == "all"
    assert json.dumps(summary.study)
