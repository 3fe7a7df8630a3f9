"""The picture of what was learned and forgotten: places are right, and labels stay apart."""

import itertools
import random
import re

import pytest

from deepen.report import scatter as drawing
from deepen.report.scatter import Arm, scatter

ROLES = ("reference", "alternative", "grown")


def arm(index, learned, forgotten, width=0.0, label="", on_front=False):
    spans = [(x, x - width, x + width) if width else (x, None, None) for x in (learned, forgotten)]
    label = label or f"arm number {index} (replay=0.25)"
    return Arm(index, label, ROLES[index % 3], spans[0], spans[1], on_front, "in words")


def drawn(arms, name="roomy"):
    return next(p for p in scatter(arms, "text", "nats per token").pictures if p.name == name)


@pytest.mark.parametrize("name", ["roomy", "narrow"])
@pytest.mark.parametrize("seed", range(12))
def test_labels_take_no_other_s_place(seed, name):
    own = random.Random(seed)
    near = 0.02 if seed % 3 == 0 else 0.3
    arms = [arm(i, own.gauss(0.5, near), own.gauss(0, near), 0.02) for i in range(12)]
    picture = drawn(arms, name)
    boxes = []
    for point in picture.points:
        assert point.place, "twelve arms have room"
        left, base = point.place
        boxes.append((left, base - 11, left + drawing.text_width(point.shown), base + 4))
    for one, other in itertools.combinations(boxes, 2):
        assert not drawing._overlap(one, other)
    for box in boxes:
        assert picture.plot[0] < box[0]
        assert box[2] < picture.plot[2]
        for point in picture.points:
            x, y = point.x, point.y
            assert not drawing._overlap(box, (x - 6, y - 6, x + 6, y + 6))


def test_what_learns_more_is_higher_and_what_forgets_more_to_the_right():
    points = drawn([arm(i, i / 10, i / 20) for i in range(6)]).points
    assert [p.arm.index for p in points] == list(range(6))
    assert [p.x for p in points] == sorted(p.x for p in points)
    assert [p.y for p in points] == sorted((p.y for p in points), reverse=True)


def test_ticks_and_zero_lie_where_numbers_do():
    picture = drawn([arm(0, 0.1, -0.1), arm(1, 0.5, 0.1)])
    ticks = {float(t.label.replace("−", "-")): t.place for t in picture.x_ticks}
    assert ticks[0.0] == pytest.approx(picture.x_zero)
    first, second = picture.points
    assert ticks[0.1] == pytest.approx(second.x)
    assert ticks[-0.1] == pytest.approx(first.x)
    in_points = scatter([arm(0, 0.1, -0.1), arm(1, 0.5, 0.1)], "tasks", "points", 100.0)
    assert {t.label for t in in_points.pictures[0].x_ticks} >= {"−10", "10"}


def test_the_front_climbs_in_steps_through_its_arms():
    arms = [arm(0, 0.5, 0.1, on_front=True), arm(1, 0.3, -0.1, on_front=True), arm(2, 0.2, 0.2)]
    picture = drawn(arms)
    best, least, _ = picture.points
    numbers = [float(n) for n in re.findall(r"[HV](-?[\d.]+)", picture.front)]
    expected = [least.x, least.y, best.x, best.y, picture.plot[2]]
    assert numbers == pytest.approx(expected, abs=0.06)
    assert drawn(arms[2:] * 2).front == ""


def test_one_arm_far_off_does_not_squeeze_the_rest_but_is_named():
    arms = [arm(i, 0.5 + i / 100, i / 100, on_front=i == 0) for i in range(5)]
    far = arm(5, -2.0, 3.0, label="solar")
    found = scatter([*arms, far], "text", "nats per token")
    assert found.outside == ["solar (in words)"]
    assert [p.arm.label for p in found.pictures[0].points] == [a.label for a in arms]
    on_front = arm(5, 3.0, 3.0, on_front=True)
    assert scatter([*arms, on_front], "text", "nats per token").outside == []


def test_wide_intervals_are_cut_at_the_picture_s_edge():
    arms = [arm(0, 0.5, 0.0, 9.0), arm(1, 0.4, 0.1, 0.01)]
    for name in ("roomy", "narrow"):
        picture = drawn(arms, name)
        left, top, right, bottom = picture.plot
        for point in picture.points:
            assert left <= point.across[0] <= point.x <= point.across[1] <= right
            assert top <= point.up[0] <= point.y <= point.up[1] <= bottom
        assert abs(picture.points[0].x - picture.points[1].x) > (right - left) / 4


def test_long_labels_keep_both_ends():
    label = f"opt-deus (fidelity={'x' * 50}, replay=0.25)"
    shown = drawn([arm(0, 0.1, 0.1, label=label), arm(1, 0.2, 0.2)])
    assert re.fullmatch(r"opt-deus.*…x*, replay=0\.25\)", shown.points[0].shown)


def test_equal_arms_can_be_drawn_and_one_alone_is_no_picture():
    assert scatter([arm(0, 0.3, 0.1)], "text", "nats") is None
    for same in (0.0, 0.3):
        points = drawn([arm(0, same, same), arm(1, same, same)]).points
        assert all(point.place for point in points)
