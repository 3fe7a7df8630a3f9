"""One arm: how well the parents of its new blocks align is measured where two were fused."""

import pytest
import torch

import tiny
from deepen.base.text import PASSAGE
from deepen.common.progress import silent
from deepen.comparison.arms import _align, run_arm
from deepen.comparison.making import make
from deepen.comparison.study import Study
from deepen.records.study import ArmRecord


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and texts."""
    folder = tmp_path_factory.mktemp("arms")
    tiny.save(folder / "base", dtype=torch.float32)
    (folder / "held_out.txt").write_text(PASSAGE * 3)
    (folder / "short.txt").write_text(PASSAGE[:80])
    return folder


def study(folder, arm, name, **changes):
    given = {
        "base": str(folder / "base"),
        "arms": ["base", arm],
        "new_layers": 2,
        "data": {"path": str(folder / "held_out.txt"), "sequence_length": 32},
        "training": {"max_steps": 1, "batch_size": 2, "report_to": "none"},
        "evaluation": {"perplexity": [str(folder / "held_out.txt")], "max_tokens": 64},
        "output": str(folder / name),
    }
    return Study.model_validate(given | changes)


def align(given):
    """Grow and align the second arm of a study."""
    arm = given.all_arms[1]
    place = given.arm_folder(arm, 0)
    place.mkdir(parents=True, exist_ok=True)
    return _align(given, make(given, arm, 0, place, silent).grow, place, silent)


@pytest.mark.parametrize(
    ("method", "blocks"), [("avg-deus", [(4, 3, 5), (6, 5, 7)]), ("solar", None)]
)
def test_an_arm_s_record_holds_the_alignment_of_parents_that_were_fused(folder, method, blocks):
    given = study(folder, method, f"whole-{method}")
    record = run_arm(given, given.all_arms[1], 0, silent)
    assert ArmRecord.model_validate_json(record.model_dump_json()) == record
    if blocks is None:
        assert record.alignment is None
        return
    alignment = record.alignment
    assert (alignment.method, alignment.calibration) == (method, "held_out.txt")
    assert [(block.block, block.below, block.above) for block in alignment.blocks] == blocks
    assert all(0 <= block.cka <= 1 and block.heat_map for block in alignment.blocks)
    # Trained blocks would have other norms than the mean that they were grown as.
    again = align(study(folder, method, "again"))
    assert again.blocks == alignment.blocks


def test_arms_with_a_trunk_in_common_are_scored_above_it(folder):
    found = {}
    for cache in ("auto", False):
        training = {"max_steps": 1, "batch_size": 2, "report_to": "none", "trunk_cache": cache}
        given = study(folder, "random", f"cache-{cache}", training=training, alignment=False)
        found[cache] = run_arm(given, given.all_arms[1], 0, silent).after.texts
        kept = list((folder / f"cache-{cache}" / "tokens" / "scored").glob("*"))
        assert len(kept) == (cache == "auto")
    assert found["auto"] == found[False]


def test_copies_are_not_even_opened(folder):
    given = study(folder, "llama-pro", "copies")
    assert align(given) is None
    assert not list(given.arm_folder(given.all_arms[1], 0).glob("alignment*"))


def test_a_study_may_leave_alignment_out(folder):
    assert align(study(folder, "avg-deus", "without", alignment=False)) is None


@pytest.mark.parametrize("text", ["documents.jsonl", "short.txt", None])
def test_without_a_text_that_calibrates_only_weights_are_compared(folder, text):
    evaluation = {"perplexity": [str(folder / text), str(folder / "held_out.txt")]} if text else {}
    alignment = align(study(folder, "avg-deus", f"text-{text}", evaluation=evaluation))
    assert alignment.calibration is None
    assert [block.cka for block in alignment.blocks] == [None, None]
    assert all(block.heat_map for block in alignment.blocks)


def test_what_was_measured_before_an_interruption_is_found_again(folder):
    given = study(folder, "avg-deus", "interrupted")
    first = align(given)
    (file,) = given.arm_folder(given.all_arms[1], 0).glob("alignment*")
    file.write_text(first.model_copy(update={"regularisation": 7.0}).model_dump_json())
    assert align(given).regularisation == 7.0
