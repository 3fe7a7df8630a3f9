"""Learned and forgotten: who is beaten by whom."""

import pytest
from pydantic import BaseModel

from deepen.demo.table import change, unbeaten, verdict


class Text(BaseModel):
    """A loss on a text."""

    side: str
    loss_nats_per_token: float
    tokens: int = 100


class Scores(BaseModel):
    """Losses on both texts."""

    texts: list[Text]


class Trained(BaseModel):
    """A budget."""

    tokens: int = 1000


class Arm(BaseModel):
    """What the table reads of a record."""

    arm: str
    before: Scores
    after: Scores
    train: Trained = Trained()


def scores(new: float, old: float) -> Scores:
    texts = [Text(side="new", loss_nats_per_token=new), Text(side="old", loss_nats_per_token=old)]
    return Scores(texts=texts)


def arm(name: str, new: float, old: float) -> Arm:
    return Arm(arm=name, before=scores(4.0, 3.0), after=scores(new, old))


ARMS = [arm("base", 2.0, 3.3), arm("lora", 2.5, 3.2), arm("grown", 2.4, 3.1), arm("top", 2.6, 3.1)]


def test_changes_are_of_the_side_that_was_asked_for():
    assert change(ARMS[0], "new") == pytest.approx(-2.0)
    assert change(ARMS[0], "old") == pytest.approx(0.3)


def test_an_arm_is_unbeaten_unless_another_is_better_on_one_text_and_no_worse_on_the_other():
    assert unbeaten(ARMS) == ["base", "grown"]
    assert unbeaten([arm("one", 2.0, 3.0), arm("same", 2.0, 3.0)]) == ["one", "same"]


def test_the_verdict_names_the_winners_whoever_they_are():
    said = verdict(ARMS)
    assert said.startswith("base learned most, grown forgot least;")
    assert verdict([ARMS[1]]).startswith("lora learned most, lora forgot least;")
