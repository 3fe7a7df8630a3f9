"""A study's statistics against SciPy's."""

import statistics

import pytest
from scipy import stats

import studies
from deepen.comparison import statistics as aggregate
from deepen.comparison.balance import paired_differences
from deepen.records.training import ProtectRecord, TrunkRecord


def test_paired_intervals_are_scipy_s():
    records, summary = studies.study(seeds=(0, 1, 2, 3))
    for difference in summary.differences[:40]:
        values = {
            (r.arm, r.seed): {s.name: s.value for s in aggregate.scores(r.after)} for r in records
        }
        ours, theirs = (
            [values[arm, seed][difference.score] for seed in range(4)]
            for arm in (difference.arm, difference.other)
        )
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert difference.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
        assert (difference.low, difference.high) == pytest.approx(tuple(expected), rel=1e-9)


def test_one_seed_has_no_interval():
    _, summary = studies.study(seeds=(7,))
    assert all(d.low is None and d.high is None and d.seeds == 1 for d in summary.differences)


def test_only_seeds_that_both_arms_have_are_paired():
    records, _ = studies.study(seeds=(0, 1, 2))
    missing = [r for r in records if not (r.arm == "lesa" and r.seed == 1)]
    differences = paired_differences(missing, studies.ARMS)
    assert {d.seeds for d in differences if "lesa" in (d.arm, d.other)} == {2}
    assert {d.seeds for d in differences if "lesa" not in (d.arm, d.other)} == {3}
    assert len({(d.arm, d.other) for d in differences}) == 6 + 15


def test_curves_are_subtracted_where_both_runs_read_the_same_sequences():
    records, _ = studies.sided_study(seeds=(0, 1))
    base = aggregate.of_arm(records, "trained on")
    assert aggregate.loss_against(aggregate.of_arm(records, "lora (replay=0.25)"), base) == []
    curve = aggregate.loss_against(aggregate.of_arm(records, "lora"), base)
    points = [
        [r.train.curve[-1].loss_nats_per_token for r in aggregate.of_arm(records, arm)]
        for arm in ("lora", "trained on")
    ]
    means = [statistics.fmean(losses) for losses in points]
    assert curve[-1].value.mean == pytest.approx(means[0] - means[1])


def test_cost_counts_the_first_pass_through_a_trunk():
    run = studies.sided_record("lora", 0, 0).train
    assert aggregate.seconds(run) == run.wall_seconds
    trunk = TrunkRecord(blocks=9, sequences=9, computed=9, stored_bytes=9, seconds=7.0)
    longer = run.model_copy(update={"trunk": trunk})
    assert aggregate.seconds(longer) == run.wall_seconds + 7.0
    kept = ProtectRecord(layers=1, tokens=1, directions=0.5, seconds=2.0)
    both = longer.model_copy(update={"protect": kept})
    assert aggregate.seconds(both) == run.wall_seconds + 9.0
    assert aggregate.flops(run) == aggregate.flops(both) == run.flops_per_token * run.tokens
    counted = run.model_copy(update={"protect": kept.model_copy(update={"flops": 5.0})})
    assert aggregate.flops(counted) == aggregate.flops(run) + 5.0
