"""Learned and forgotten: the verdict says what the records do."""

import pytest

from deepen.demo.table import loss_on, verdict
from studies import sided_record

ARMS = [sided_record(arm, 0, index) for index, arm in enumerate(["trained on", "lora", "opt-deus"])]


def test_losses_are_of_the_side_that_was_asked_for():
    for record in ARMS:
        new, old = record.after.texts[0], record.after.texts[1]
        assert loss_on(record.after, "new") == new.loss_nats_per_token
        assert loss_on(record.after, "old") == old.loss_nats_per_token


@pytest.mark.parametrize("shown", [ARMS, ARMS[1:], ARMS[:1]])
def test_the_verdict_names_the_winners_whoever_they_are(shown):
    learned = min((loss_on(record.after, "new"), record.arm) for record in shown)[1]
    kept = min((loss_on(record.after, "old"), record.arm) for record in shown)[1]
    said = " ".join(verdict(shown).split())
    assert said.startswith(f"{learned} learned most, {kept} forgot least;")
