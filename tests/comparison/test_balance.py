"""Learned against forgotten: held to plain arithmetic, to SciPy, and to what a front is."""

import random
import statistics

import numpy as np
import pytest
from scipy import stats

import studies
from deepen.comparison import balance
from deepen.comparison.balance import clearly_beaten, front, paired_differences


def loss(scores, side):
    return statistics.fmean(t.loss_nats_per_token for t in scores.texts if t.side == side)


def with_gains(gains, seeds=(0,)):
    """Return records of arms that learn and forget this much."""
    labels = list(studies.SIDED)
    records = []
    for index, (arm, points) in enumerate(zip(labels, gains, strict=False)):
        for seed in seeds:
            record = studies.sided_record(arm, seed, index)
            after = studies.sided_scores(arm, points[seeds.index(seed)])
            records.append(record.model_copy(update={"after": after}))
    return records, labels[: len(gains)]


def test_learned_and_forgotten_are_counted_from_what_the_base_scored():
    records, _ = studies.sided_study(texts=2, tasks=True)
    gained = balance.all_changes(records)
    base = next(r for r in records if r.role == "reference").before
    for record in records:
        own = gained[record.arm, record.seed]
        assert own["learned"] == pytest.approx(loss(base, "new") - loss(record.after, "new"))
        assert own["forgotten"] == pytest.approx(loss(record.after, "old") - loss(base, "old"))
        for before, after in zip(base.texts, record.after.texts, strict=True):
            change = before.loss_nats_per_token - after.loss_nats_per_token
            told = f"learned on {after.file}", f"forgotten on {after.file}"
            name, sign = (told[0], 1) if after.side == "new" else (told[1], -1)
            assert own[name] == pytest.approx(sign * change)
        accuracy = {task.task: task.value for task in record.after.tasks if task.metric == "acc"}
        assert own["learned in tasks"] == pytest.approx(accuracy["logiqa"] - 0.3)
        assert own["forgotten of piqa"] == pytest.approx(0.7 - accuracy["piqa"])
    assert loss(next(r for r in records if r.arm == "solar").before, "new") > loss(base, "new") + 1


def test_paired_intervals_of_what_was_learned_are_scipy_s():
    records, summary = studies.sided_study(seeds=(0, 1, 2, 3), texts=2)
    gained = balance.all_changes(records)
    tested = [
        d for d in summary.differences if d.score in ("learned", "forgotten on manuals_1.txt")
    ]
    assert len(tested) == 2 * 12 * 11 / 2
    for difference in tested:
        ours, theirs = (
            [gained[arm, seed][difference.score] for seed in range(4)]
            for arm in (difference.arm, difference.other)
        )
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
        assert (difference.low, difference.high) == pytest.approx(tuple(expected), rel=1e-6)


def test_without_the_reference_s_record_what_begins_as_the_base_stands_for_it():
    records, summary = studies.sided_study(seeds=(0, 1))
    wanted = balance.all_changes(records)
    others = [r for r in records if r.role != "reference"]
    assert balance.all_changes(others) == {k: v for k, v in wanted.items() if k[0] != "trained on"}
    grown = [r for r in records if r.arm in ("solar", "llama-pro")]
    assert balance.all_changes(grown) == {
        k: wanted[k] for k in wanted if k[0] in summary.arms[8:11:2]
    }
    assert balance.all_changes([r for r in records if r.arm == "solar"]) == {}
    assert not [d for d in paired_differences(others, summary.arms) if d.other == "trained on"]


def test_texts_without_a_side_teach_nothing():
    records, summary = studies.study(seeds=(0, 1))
    assert set().union(*balance.all_changes(records).values()) == set()
    assert balance.kinds(records) == []
    assert front(records, summary.arms) == summary.front == []


def test_one_side_alone_has_no_front():
    records, summary = studies.sided_study(seeds=(0,))
    half = [
        r.model_copy(
            update={
                key: getattr(r, key).model_copy(update={"texts": getattr(r, key).texts[:1]})
                for key in ("before", "after")
            }
        )
        for r in records
    ]
    assert {*balance.all_changes(half)["lora", 0]} == {"learned", "learned on german_0.jsonl"}
    assert front(half, summary.arms) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nobody_beats(seed):
    own = random.Random(seed)
    points = [(own.choice([0.1, 0.2, own.random()]), own.random()) for _ in range(12)]
    records, arms = with_gains([[point] for point in points])
    found = front(records, arms)
    points = dict(zip(arms, points, strict=True))
    rounded = {arm: (round(x, 9), round(y, 9)) for arm, (x, y) in points.items()}

    def beats(one, other):
        return one[0] >= other[0] and one[1] <= other[1] and one != other

    assert found == [arm for arm in arms if not any(beats(rounded[o], rounded[arm]) for o in arms)]
    # Along the front, what learns more forgets more.
    along = sorted(rounded[arm] for arm in found)
    assert along == sorted(along, key=lambda point: point[1])
    # An arm that is worse in both than one of the front changes nothing.
    worse = (points[found[0]][0] - 0.1, points[found[0]][1] + 0.1)
    again, labels = with_gains([[point] for point in [*list(points.values())[:-1], worse]])
    if arms[-1] not in found:
        assert front(again, labels) == found


def test_equal_on_one_side_and_worse_on_the_other_is_beaten():
    records, arms = with_gains([[(0.5, 0.1)], [(0.4, 0.1)], [(0.5, 0.2)], [(0.5, 0.1)]])
    assert front(records, arms) == [arms[0], arms[3]]


def test_a_task_s_perplexity_is_no_part_of_the_mean_of_tasks():
    records, _ = studies.sided_study(arms=["trained on", "lora"], seeds=(0,), tasks=True)

    def with_perplexity(scores, value):
        update = {"task": "lambada", "metric": "perplexity", "higher_is_better": False}
        task = scores.tasks[0].model_copy(update=update | {"value": value})
        return scores.model_copy(update={"tasks": [*scores.tasks, task]})

    more = [
        r.model_copy(
            update={
                "before": with_perplexity(r.before, 30.0),
                "after": with_perplexity(r.after, 20.0),
            }
        )
        for r in records
    ]
    plain, own = balance.all_changes(records), balance.all_changes(more)
    for run, found in own.items():
        assert found["learned of lambada"] == 10.0
        assert found["learned in tasks"] == plain[run]["learned in tasks"]


def test_the_front_holds_means_over_seeds_and_may_be_of_tasks():
    swings = [[(0.5, 0.1), (0.1, 0.3)], [(0.2, 0.15), (0.35, 0.2)]]
    records, arms = with_gains(swings, seeds=(0, 1))
    assert front(records, arms) == arms, "0.3 and 0.2 on the mean, against 0.275 and 0.175"
    records, summary = studies.sided_study(tasks=True)
    assert balance.kinds(records) == ["text", "task"]
    assert set(front(records, summary.arms, "task")) <= set(summary.arms)
    assert "solar" not in front(records, summary.arms, "task")


def test_clearly_beaten_needs_both_intervals_clear_of_zero():
    better = [(0.6, 0.1), (0.61, 0.11), (0.59, 0.1)]
    noisy = [(0.3, 0.2), (0.8, 0.2), (0.3, 0.2)]
    worse = [(0.4, 0.3), (0.42, 0.31), (0.41, 0.32)]
    records, arms = with_gains([better, noisy, worse], seeds=(0, 1, 2))
    differences = paired_differences(records, arms)
    assert front(records, arms) == arms[:1]
    assert clearly_beaten(differences, arms, "text") == {arms[2]: arms[:1]}
    alone, _ = with_gains([better[:1], worse[:1]])
    assert clearly_beaten(paired_differences(alone, arms), arms, "text") == {}


def test_two_bases_and_a_reference_of_any_label():
    records, summary = studies.sided_study(arms=list(studies.SIDED)[:2], seeds=(0, 1))
    assert {r.method for r in records} == {"base"}
    assert {(d.arm, d.other) for d in summary.differences} == {
        ("trained on (replay=0.25)", "trained on")
    }
