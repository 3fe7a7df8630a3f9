"""Pairs of arms over several studies: SciPy's intervals over all pairs of runs."""

import numpy as np
import pytest
from scipy import stats

import studies
from deepen.common.errors import DeepenError
from deepen.comparison import balance
from deepen.comparison.pooling import chosen_pairs, one_by_one, pooled

PAIRS = [("opt-deus", "lora"), ("lora", "trained on")]
THREE = ["trained on", "lora", "opt-deus"]


@pytest.fixture(scope="module")
def both():
    """Two studies with seeds of the same numbers and the same labels; the second has more arms."""
    return {
        "one": studies.sided_study(arms=THREE, seeds=(0, 1, 2))[0],
        "two": studies.sided_study(arms=[*THREE, "wider"], seeds=(1, 2, 5, 6))[0],
    }


def differences(records, pair, name):
    gained = balance.all_changes(records)
    seeds = {seed for arm, seed in gained if arm == pair[0]}
    return [gained[pair[0], seed][name] - gained[pair[1], seed][name] for seed in seeds]


@pytest.mark.parametrize("name", ["learned", "forgotten"])
def test_every_pair_of_runs_counts_once(both, name):
    found = {(d.arm, d.other): d for d in pooled(both, PAIRS) if d.score == name}
    for pair in PAIRS:
        each = [x for records in both.values() for x in differences(records, pair, name)]
        expected = stats.t.interval(0.95, 6, loc=np.mean(each), scale=stats.sem(each))
        assert found[pair].seeds == len(each) == 7
        assert found[pair].mean == pytest.approx(np.mean(each))
        assert (found[pair].low, found[pair].high) == pytest.approx(expected)


def test_one_study_alone_is_that_study(both):
    assert pooled({"one": both["one"]}, PAIRS) == one_by_one(both, PAIRS)["one"]
    every = balance.paired_differences(both["one"], THREE)
    own = {d.score: d for d in every if (d.arm, d.other) == PAIRS[1]}
    for d in pooled({"one": both["one"]}, PAIRS[1:]):
        assert d == own[d.score]


def test_a_study_without_one_of_the_arms_does_not_count(both):
    found = pooled(both, [("wider", "lora")])
    assert {d.seeds for d in found} == {4}
    assert pooled({"one": both["one"]}, [("wider", "lora")]) == []


def test_the_base_s_own_difference_is_not_one_between_arms():
    """Studies whose bases differ much still pair each run with one of its own base."""
    records, _ = studies.sided_study(arms=THREE, seeds=(0, 1))
    shifted = [
        r.model_copy(
            update={
                stage: scores.model_copy(
                    update={
                        "texts": [
                            t.model_copy(update={"loss_nats_per_token": t.loss_nats_per_token + 3})
                            for t in scores.texts
                        ]
                    }
                )
                for stage, scores in (("before", r.before), ("after", r.after))
            }
        )
        for r in records
    ]
    twice = {d.score: d for d in pooled({"a": records, "b": shifted}, PAIRS[:1])}
    once = {d.score: d for d in pooled({"a": records}, PAIRS[:1])}
    for name in ("learned", "forgotten"):
        assert twice[name].mean == pytest.approx(once[name].mean)
        assert twice[name].high - twice[name].low < once[name].high - once[name].low


def test_pairs_are_those_asked_for_or_named_or_all_with_the_reference(both):
    assert chosen_pairs(both, []) == [(a, "trained on") for a in ("lora", "opt-deus", "wider")]
    named = [("lora", "opt-deus"), ("lora", "opt-deus"), ("gone", "lora")]
    assert chosen_pairs(both, [], named) == [("lora", "opt-deus")]
    assert chosen_pairs(both, ["wider - lora", "lora − wider"], named) == [
        ("wider", "lora"),
        ("lora", "wider"),
    ]


def test_a_label_may_hold_a_sign(both):
    labels = {"x": [r.model_copy(update={"arm": f"a - {r.arm}"}) for r in both["one"]]}
    assert chosen_pairs(labels, ["a - lora - a - opt-deus"]) == [("a - lora", "a - opt-deus")]


@pytest.mark.parametrize(
    ("asked", "said"),
    [("lora", "spaces around the sign"), ("lora - loar", "did you mean 'lora'")],
)
def test_a_pair_that_is_none_is_refused(both, asked, said):
    with pytest.raises(DeepenError, match=said):
        chosen_pairs(both, [asked])
