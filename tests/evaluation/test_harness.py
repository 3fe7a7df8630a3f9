"""Tasks of lm-evaluation-harness against log-likelihoods taken by hand, all offline."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.evaluation import harness
from deepen.evaluation.evaluate import evaluate
from deepen.growth.grow import grow

SENTENCES = [" ".join(PASSAGE.split()[i : i + 9]) for i in range(0, 72, 6)]
ROWS = [
    {"question": text[:30], "choices": [text[30:], "the water", "Paris"], "answer": i % 3}
    for i, text in enumerate(SENTENCES)
]


def choice_task(name: str, data: Path, **more: object) -> dict[str, object]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "c")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.5},
    } | more


def rolling_task(name: str, data: Path) -> dict[str, object]:
    return choice_task(
        name,
        data,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks that read a file."""
    made = tmp_path_factory.mktemp("own-tasks")
    data = made / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    tasks = [
        choice_task("rivers", data),
        choice_task("rivers_again", data),
        rolling_task("flow", data),
    ]
    for task in tasks:
        (made / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    group = {
        "group": "waters",
        "task": ["rivers", "rivers_again"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1},
    }
    (made / "waters.yaml").write_text(yaml.safe_dump(group))
    return made


def accuracy_by_hand(checkpoint: Path) -> float:
    model, tokenizer = tiny.load(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    right = 0
    for row in ROWS:
        scores = []
        for choice in row["choices"]:
            question = tokenizer(row["question"])["input_ids"]
            whole = tokenizer(row["question"] + choice)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(
                sum(float(logits[i - 1, whole[i]]) for i in range(len(question), len(whole)))
            )
        right += int(np.argmax(scores)) == row["answer"]
    return right / len(ROWS)


def test_accuracy_is_that_of_log_likelihoods_by_hand(llama: Path, folder: Path) -> None:
    record = evaluate(llama, tasks=["rivers"], task_folders=[folder], batch_size=4)
    (score,) = record.tasks
    expected = accuracy_by_hand(llama)
    assert 0 < expected < 1  # else the test could not fail
    assert score.value == pytest.approx(expected)
    # The standard error of a mean of zeros and ones.
    assert score.stderr == pytest.approx((expected * (1 - expected) / (len(ROWS) - 1)) ** 0.5)
    assert (score.task, score.metric, score.samples, score.shots) == ("rivers", "acc", 12, 0)
    assert (score.higher_is_better, score.version) == (True, "2.5")
    assert record.versions.keys() >= {"lm_eval", "datasets", "torch"}


def test_grown_identity_scores_exactly_as_its_base(
    llama: Path, folder: Path, tmp_path: Path
) -> None:
    grow(llama, tmp_path / "grown", method="opt-deus", new_layers=2)
    text = tmp_path / "text.txt"
    text.write_text(PASSAGE, encoding="utf-8")
    base, grown = (
        evaluate(model, perplexity=[text], tasks=["waters", "flow"], task_folders=[folder])
        for model in (llama, tmp_path / "grown")
    )
    assert grown.texts == base.texts
    assert grown.tasks == base.tasks
    assert grown.fingerprint != base.fingerprint


def test_groups_limits_shots_and_seeds(llama: Path, folder: Path) -> None:
    given = {"task_folders": [folder], "limit": 5, "shots": 1}
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    record = evaluate(llama, tasks=["waters", "flow"], seed=3, **given)
    assert state[0] == random.getstate()
    assert state[1] == np.random.get_state()[1].tolist()
    assert torch.equal(state[2], torch.get_rng_state())
    again = evaluate(llama, tasks=["waters", "flow"], seed=3, **given)
    assert again.tasks == record.tasks
    scores = {(score.task, score.metric): score for score in record.tasks}
    assert scores["rivers", "acc"].samples == 5
    assert scores["rivers", "acc"].shots == 1
    assert scores["waters", "acc"].samples == 10
    assert scores["waters", "acc"].value == pytest.approx(scores["rivers", "acc"].value)
    assert not scores["flow", "word_perplexity"].higher_is_better
    assert scores["flow", "bits_per_byte"].stderr is None


def test_hash_follows_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    def hashed(name: str, content: str, **more: object) -> str:
        place = tmp_path / name
        place.mkdir()
        (place / "rows.jsonl").write_text(content)
        task = choice_task("t", place / "rows.jsonl", **more)
        del task["dataset_kwargs"]["cache_dir"]  # type: ignore[attr-defined]
        (place / "t.yaml").write_text(yaml.safe_dump(task))
        return harness.load(["t"], [place]).hash_of("t")

    content = (folder / "rows.jsonl").read_text()
    first = hashed("a", content)
    assert first == hashed("b", content)
    assert first != hashed("c", content.replace("Paris", "Rome"))
    assert first != hashed("d", content, target_delimiter=" ")


def test_bad_tasks(llama: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="no task folder"):
        evaluate(llama, tasks=["rivers"], task_folders=[tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeepenError, match=r"holds no .yaml file"):
        evaluate(llama, tasks=["rivers"], task_folders=[tmp_path / "empty"])
    with pytest.raises(DeepenError, match="Task 'rivers' is asked for twice"):
        evaluate(llama, tasks=["waters", "rivers"], task_folders=[folder])
    broken = choice_task("broken", folder / "rows.jsonl", doc_to_text="{{nothing}}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(DeepenError, match=r"broken.*'nothing' is undefined"):
        evaluate(llama, tasks=["broken"], task_folders=[tmp_path / "broken"])


def test_unknown_task_names_the_nearest(llama: Path, folder: Path) -> None:
    with pytest.raises(DeepenError, match=r"Unknown task 'rivrs'; did you mean 'rivers'\?"):
        evaluate(llama, tasks=["rivrs"], task_folders=[folder])


@pytest.mark.parametrize("name", ["logiqa", "paper"])
def test_data_out_of_reach_is_one_sentence(llama: Path, name: str) -> None:
    with pytest.raises(DeepenError, match="run it once while the hub can be reached") as caught:
        evaluate(llama, tasks=[name])
    assert "\n" not in str(caught.value)


def test_logiqa_asks_what_the_shipped_task_asks(tmp_path: Path) -> None:
    from lm_eval.tasks.logiqa import utils_logiqa as shipped

    row = {
        "label": "c",
        "context": "All rivers run.\nSome run deep.",
        "question": "Which runs?",
        "options": ["None.", "One.", "All.", "Some {{of}} them."],
    }
    file = tmp_path / "logiqa.json"
    file.write_text(json.dumps([row]), encoding="utf-8")
    task = yaml.safe_load((harness.FOLDER / "logiqa.yaml").read_text(encoding="utf-8"))
    task |= {"dataset_path": "json"}
    task["dataset_kwargs"] = {
        "data_files": dict.fromkeys(("train", "validation", "test"), str(file))
    }
    task["dataset_kwargs"]["cache_dir"] = str(tmp_path / "cache")
    (tmp_path / "logiqa.yaml").write_text(yaml.safe_dump(task))
    ours = harness.load(["logiqa"], [tmp_path]).leaves["logiqa"]
    assert ours.doc_to_text(row) == shipped.doc_to_text(row)
    assert ours.doc_to_target(row) == shipped.doc_to_target(row) == 2
    assert ours.doc_to_choice(row) == row["options"]


def test_paper_is_its_eight_tasks() -> None:
    manager = harness._manager([harness.FOLDER], ["paper"])
    members = manager.task_index["paper"].cfg["task"]
    assert len(members) == 8
    assert set(members) <= set(manager.all_tasks)
    assert manager.task_index["logiqa"].yaml_path == harness.FOLDER / "logiqa.yaml"


def test_own_tasks_take_the_places_of_a_group(llama: Path, folder: Path, tmp_path: Path) -> None:
    members = yaml.safe_load((harness.FOLDER / "paper.yaml").read_text())["task"]
    for name in members:
        task = choice_task(name, folder / "rows.jsonl")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    record = evaluate(llama, tasks=["paper"], task_folders=[tmp_path], limit=3)
    assert [score.task for score in record.tasks] == members
    assert {score.value for score in record.tasks} == {record.tasks[0].value}
