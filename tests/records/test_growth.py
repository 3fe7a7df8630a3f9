"""The lineage in config.json, also as earlier versions wrote it."""

import json
import shutil

import pytest

import deepen
from deepen.common.errors import DeepenError
from deepen.growth.base_files import MANIFEST
from deepen.records.growth import FIELD, GrowChoice, GrowRequest, read_lineage

# As version 0.1.0 of November 2026 wrote it, before options had one unit each.
BEFORE = {
    "format": 1,
    "new_blocks": [3, 5, 7],
    "steps": [
        {
            "method": "opt-deus",
            "reference": "arXiv:2508.08011",
            "options": {
                "output_scale": 0.0,
                "restore_norms": False,
                "feature_scale": 1.0,
                "upper_share": 0.5,
                "match_norms": False,
                "fidelity": "published",
                "regularisation": 0.06,
                "max_iterations": 10000,
                "solver": "exact",
                "matched_share": 1.0,
                "cost": "weights",
                "calibration": None,
            },
            "placement": None,
            "seed": 3,
            "device": "cpu",
            "base": {"name": "tiny", "revision": None, "fingerprint": "ab" * 32},
            "plan": [0, 1, 2, [2, 3, 0.5], 3, [3, 4, 0.5], 4, [4, 5, 0.5], 5],
            "new_blocks": [3, 5, 7],
            "trains": "new_blocks",
            "preserves_function": True,
            "versions": {"deepen": "0.1.0", "torch": "2.13.0"},
        }
    ],
}


def test_an_entry_of_the_version_before_reads_and_stays_what_it_was():
    lineage = read_lineage({FIELD: BEFORE})
    read = lineage.model_dump(mode="json")
    assert read["steps"][0]["base"].pop("sha256") is None
    assert read == BEFORE
    assert read_lineage({}) is None


def test_a_checkpoint_with_such_an_entry_verifies_inspects_and_grows_again(llama, tmp_path):
    grown = tmp_path / "grown"
    deepen.grow(llama, grown, options={"fidelity": "published"})
    config = json.loads((grown / "config.json").read_text())
    identity = config[FIELD]["steps"][0]["base"]
    config[FIELD] = BEFORE | {"steps": [BEFORE["steps"][0] | {"base": identity}]}
    (grown / "config.json").write_text(json.dumps(config))
    (grown / MANIFEST).unlink()
    assert deepen.verify(llama, grown).passed
    assert deepen.inspect(grown).new_blocks == [3, 5, 7]
    deepen.grow(grown, tmp_path / "twice", method="llama-pro", new_layers=2)
    assert deepen.verify(llama, tmp_path / "twice").passed
    shutil.rmtree(tmp_path / "twice")


def test_an_entry_that_is_none_is_refused_in_one_sentence():
    with pytest.raises(DeepenError, match=r"new_blocks.*update deepen"):
        read_lineage({FIELD: {"format": 1, "steps": []}})


def changed(**fields):
    """Return an entry of two growths and a training, with some fields of the second changed."""
    step = BEFORE["steps"][0]
    plan = [*range(9), [8, 8, 0.0]]
    second = step | {"plan": plan, "new_blocks": [9]}
    training = {"stage": "cpt", "after_steps": 2, "blocks": [9], "new_blocks_before": {"9": "ab"}}
    entry = {"format": 1, "new_blocks": [9], "steps": [step, second], "trainings": [training]}
    for field, value in fields.items():
        where = next(part for part in (entry, second, training) if field in part)
        where[field] = value
    return {FIELD: entry}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("new_blocks", [0]),
        ("new_blocks", []),
        ("plan", [*range(9), [8, 8, 0.0], [8, 8, 0.0]]),
        ("plan", [*range(9), [8, 8, 0.0], 9]),
        ("plan", list(range(10))),
        ("after_steps", 3),
        ("blocks", [10]),
        ("new_blocks_before", {10: "ab"}),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(field, value):
    """What a training would train is read from it: one edited field must not decide."""
    assert read_lineage(changed()).new_blocks == [9]
    with pytest.raises(DeepenError, match=r"contradicts itself \(.*\): it was edited"):
        read_lineage(changed(**{field: value}))


def test_every_field_of_a_request_says_what_it_is():
    for schema in (GrowChoice, GrowRequest):
        assert all(field.description for field in schema.model_fields.values())
    with pytest.raises(ValueError, match="frozen"):
        GrowRequest().seed = 1
