"""The study file: short forms, labels, mistakes."""

from pathlib import Path

import pytest
import yaml

from deepen import methods
from deepen.common.errors import DeepenError
from deepen.comparison.arm import NOT_GROWN, Arm
from deepen.comparison.settle import check_texts
from deepen.comparison.study import Study, checked, difference, load_study
from deepen.records.growth import GrowRequest

STUDIES = Path(__file__).parents[2] / "examples/studies"
SMALLEST = """
base: ./base
arms: [base, opt-deus, {method: opt-deus, options: {fidelity: published}}, solar]
new_layers: 8
seeds: [0, 1, 2]
data: {path: corpus.txt, sequence_length: 2048}
training: {max_steps: 100, batch_size: 8, learning_rate: 1.0e-3}
evaluation: {perplexity: held_out.txt}
output: runs/study
"""


def study(**changes) -> Study:
    return checked(Study.model_validate(yaml.safe_load(SMALLEST) | changes))


def test_the_smallest_study_of_the_docs(tmp_path):
    (tmp_path / "study.yaml").write_text(SMALLEST)
    loaded = load_study(tmp_path / "study.yaml", ["training.max_steps=5"])
    names = [arm.name for arm in loaded.all_arms]
    assert names == ["base", "opt-deus", "opt-deus (fidelity=published)", "solar"]
    assert loaded.training.max_steps == 5


def test_the_example_is_a_study_of_all_methods_and_alternatives():
    arms = load_study(Path(__file__).parents[2] / "examples/study.yaml").all_arms
    assert {arm.method for arm in arms} == {*NOT_GROWN, *methods.names()}


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_docs_name_their_own_command_and_output(file):
    made = load_study(file)
    assert f"deepen compare examples/studies/{file.name}" in file.read_text()
    assert made.output == f"runs/studies/{file.stem}"
    texts = {Path(text).name for text, _ in made.evaluation.texts}
    assert made.data.path not in texts
    assert {side for _, side in made.evaluation.texts} == {"new", "old"}
    assert made.rates or made.training.learning_rate


def test_the_base_is_always_an_arm_and_trains_everything():
    made = study(arms=["llama-pro"])
    assert [arm.name for arm in made.all_arms] == ["base", "llama-pro"]
    base, grown = (made.recipe(arm, 3, "cpt", "m", "o") for arm in made.all_arms)
    assert base.training.trains == "everything"
    assert grown.training.trains == "auto"
    assert base.data == grown.data, "arms must read the same tokens"
    assert base.seed == grown.seed == 3


def test_the_others_are_held_to_the_first_whole_base_whatever_it_is_called():
    old = {"method": "base", "training": {"trains": [0]}, "label": "base"}
    again = {"method": "base", "replay": 0.5}
    whole = {"method": "base", "label": "trained on"}
    made = study(arms=[old, again, whole, "solar"], replay="old.txt")
    roles = [made.role(arm) for arm in made.all_arms]
    assert roles == ["alternative", "alternative", "reference", "grown"]
    assert study(arms=[old, "solar"]).role(Arm.model_validate(old)) == "reference"


def test_replay_takes_its_share_of_the_sequences_and_fine_tuning_its_own_settings():
    tuned = {"data": {"path": "rows.jsonl"}, "training": {"learning_rate": 1e-5}}
    own = {"replay": 0.25, "training": {"neurons": 3}, "fine_tuning": {"epochs": 2}}
    made = study(arms=[{"method": "wider", **own}], replay=["o.txt"], fine_tuning=tuned)
    arm = made.all_arms[1]
    first = made.recipe(arm, 0, "cpt", "m", "o", rate=5e-3)
    assert [(s.path, s.share) for s in first.data.mix] == [(["o.txt"], 0.25)]
    assert (first.training.neurons, first.training.learning_rate) == (3, 5e-3)
    second = made.recipe(arm, 0, "sft", "m", "o")
    assert second.data.mix == []
    assert second.training.neurons == 3
    assert (second.training.epochs, second.training.learning_rate) == (2, 1e-5)


def test_texts_and_tasks_have_sides():
    given = {"new": "n.txt", "old": ["o.txt"], "perplexity": "p.txt", "old_tasks": ["piqa"]}
    made = study(evaluation=given).evaluation
    assert made.texts == [("n.txt", "new"), ("o.txt", "old"), ("p.txt", None)]
    assert made.sides_of_tasks == {"piqa": "old"}


def test_an_arm_s_own_settings_win():
    arms = ["opt-deus", {"method": "opt-deus", "training": {"learning_rate": 1e-4}}]
    made = study(arms=arms)
    rates = [made.recipe(arm, 0, "cpt", "m", "o").training.learning_rate for arm in made.all_arms]
    assert rates == [1e-3, 1e-3, 1e-4]
    assert made.all_arms[2].name == "opt-deus (learning_rate=0.0001)"


def test_an_arm_is_grown_as_it_says_and_else_as_the_study_does():
    own = {"method": "lesa", "placement": "bottom", "new_layers": 4, "per_gap": 2, "label": "x"}
    made = study(arms=["solar", own | {"options": {"epochs": 3}, "training": {"max_steps": 1}}])
    plain, full = (arm.request(made.new_layers, 7) for arm in made.arms)
    assert plain == GrowRequest(method="solar", new_layers=8, seed=7)
    assert full == GrowRequest(
        method="lesa",
        placement="bottom",
        new_layers=4,
        per_gap=2,
        options={"epochs": 3},
        seed=7,
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": ["opt-deuz"]}, "Unknown method 'opt-deuz'; did you mean 'opt-deus'"),
        ({"arms": [{"method": "lesa", "options": {"epoch": 2}}]}, "did you mean 'epochs'"),
        ({"arms": ["solar", "solar"]}, "Two arms of the study are called 'solar'"),
        (
            {"arms": [{"method": "solar", "label": "a b"}, {"method": "lesa", "label": "A/b"}]},
            "one folder",
        ),
        ({"seeds": [0, 0]}, "names a seed twice"),
        ({"arms": [{"method": "solar", "training": {"learning_rat": 1}}]}, "learning_rate"),
        ({"rates": {"grid": [1e-3], "text": "c.txt", "seed": 1}}, "one of the study's seeds"),
        ({"evaluation": {"new": "a/x.txt", "old": "b/x.txt"}}, "Two texts .* called 'x.txt'"),
        ({"arms": [{"method": "base", "replay": 0.1}]}, "replays old text"),
        ({"arms": [{"method": "solar", "label": ".."}]}, "no name that a folder can have"),
        ({"arms": [{"method": "solar", "label": "a" * 300}]}, "no name that a folder can have"),
        (
            {
                "arms": [{"method": "solar", "fine_tuning": {"epoch": 1}}],
                "fine_tuning": {"data": {"path": "rows.jsonl"}},
            },
            "did you mean 'epochs'",
        ),
        ({"pairs": [["solar", "opt-deuss"]]}, r"arm \(pairs\) 'opt-deuss'; did you mean"),
    ],
)
def test_mistakes_are_one_sentence(changes, sentence):
    with pytest.raises(DeepenError, match=sentence):
        study(**changes)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeds=" + str(list(range(3000))), "'seeds' .* at most 100 items"),
        ("seeds=[-1]", "'seeds.0'"),
        ("new_layers=0", "'new_layers'"),
        ("evaluation.batch_size=0", "evaluation.batch_size"),
        ("evaluation.sequence_length=1", "evaluation.sequence_length"),
        ("evaluation.max_tokens=-5", "evaluation.max_tokens"),
        ("arms=[{method: base, replay: .nan}]", "replay"),
        ("arms=[{method: lora, training: {weight_decay: .inf}}]", "weight_decay.* finite"),
        (f"arms=[{{method: solar, vary: {{a: {[0] * 99}, b: {[0] * 99}}}}}]", "9,801 arms"),
        ("arms=[{method: solar, vary: {method.x: [1]}}]", "'method' has no keys"),
    ],
)
def test_bounds_are_told_before_anything_is_done(tmp_path, override, sentence):
    (tmp_path / "study.yaml").write_text(SMALLEST)
    with pytest.raises(DeepenError, match=sentence):
        load_study(tmp_path / "study.yaml", [override])


@pytest.mark.parametrize(
    ("perplexity", "calibration"),
    [
        ([], None),
        ("a/held_out.txt", "a/held_out.txt"),
        (["a.txt", "b.txt"], "a.txt"),
        ("a.jsonl", None),
        (["a.jsonl", "b.txt"], None),
    ],
)
def test_blocks_are_compared_on_the_first_text_if_it_is_plain(perplexity, calibration):
    wanted = None if calibration is None else Path(calibration)
    assert study(evaluation={"perplexity": perplexity}).evaluation.calibration == wanted


def test_an_unknown_key_names_the_nearest(tmp_path):
    (tmp_path / "study.yaml").write_text(SMALLEST.replace("seeds:", "seed:"))
    with pytest.raises(DeepenError, match="seeds"):
        load_study(tmp_path / "study.yaml")


def test_what_two_studies_do_not_share():
    first = study().model_dump(mode="json")
    more = study(seeds=[0, 1, 2, 3], arms=["base", "opt-deus", "lesa"]).model_dump(mode="json")
    assert difference(first, more) is None
    assert difference(first, study(pairs=[["base", "solar"]]).model_dump(mode="json")) is None
    assert difference(first, study(title="Tops").model_dump(mode="json")) is None
    assert difference({k: v for k, v in first.items() if k != "title"}, first) is None
    assert difference(first, study(alignment=False).model_dump(mode="json")) is None
    other = study(training={"max_steps": 9}).model_dump(mode="json")
    assert difference(first, other) == "training.batch_size"
    relabelled = [{"method": "opt-deus", "label": "solar"}]
    assert difference(first, study(arms=relabelled).model_dump(mode="json")) == "arms (solar)"


def test_arms_that_would_be_scored_on_nothing_are_refused_at_once():
    with pytest.raises(DeepenError, match="scores its arms on nothing"):
        check_texts(study(evaluation={}))
