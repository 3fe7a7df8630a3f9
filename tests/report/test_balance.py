"""Learned against forgotten in the report: what it opens with, by whatever the records hold."""

import re

import pytest

import studies
from deepen.comparison import balance as gained
from deepen.comparison import statistics as aggregate
from deepen.report import report, text
from deepen.report.balance import balance, rates
from deepen.report.tables import Results, stretches


def results(records, summary):
    return Results(records, summary.arms, summary.differences)


def row(table, arm):
    cells = next(cells for name, cells in table.rows if name == arm)
    return dict(zip(table.header[1:], cells, strict=True))


def page_of(folder):
    return re.sub(r"\s+", " ", report(folder).read_text(encoding="utf-8"))


def test_the_table_tells_changes_differences_and_cost():
    records, summary = studies.sided_study(texts=2)
    found = balance(results(records, summary), summary.front, "after training")
    assert len(found.pictures) == 1
    values = gained.all_changes(records)
    for arm in summary.arms:
        cells = row(found.table, arm)
        mean = aggregate.spread([values[arm, seed]["learned"] for seed in range(3)]).mean
        learned = cells["learned, nats per token"]
        assert learned.text == text.difference("loss_nats_per_token", mean)
        difference = next(
            (
                d
                for d in summary.differences
                if (d.arm, d.other, d.score) == (arm, "trained on", "learned")
            ),
            None,
        )
        assert any(note.startswith("Δ") for note in learned.notes) == (difference is not None)
        if difference:
            assert (
                text.interval("loss_nats_per_token", difference.low, difference.high)
                in learned.notes[-1]
            )
        assert cells["role"].text == summary.roles[arm]
        assert (cells["on the front"].text == "yes") == (arm in summary.front)
        assert (
            cells["FLOPs"].text == text.count(aggregate.flops(records[0].train))
            or arm != "trained on"
        )
    assert row(found.table, "trained on")["learned, nats per token"].best
    assert "clearly beaten by" in row(found.table, "solar")["on the front"].notes[0]
    assert found.single.header[1:] == [
        "learned on german_0.jsonl",
        "learned on german_1.jsonl",
        "forgotten on manuals_0.txt",
        "forgotten on manuals_1.txt",
    ]


def test_tasks_with_sides_have_a_picture_of_their_own():
    records, summary = studies.sided_study(tasks=True)
    found = balance(results(records, summary), summary.front, "after training")
    assert [p.x_title for p in found.pictures] == ["forgotten, nats per token", "forgotten, points"]
    accuracy = row(found.table, "opt-deus")["learned, points"].text
    assert 10 < float(accuracy) < 20


def test_a_study_without_sides_opens_as_it_did(tmp_path):
    records, summary = studies.study(seeds=(0,))
    assert balance(results(records, summary), [], "after training") is None
    page = page_of(studies.write(tmp_path, records, summary))
    assert "Learned against forgotten" not in page
    assert page.index("h-best") < page.index("h-results")


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2, 3, 4)])
def test_the_page_opens_with_the_picture(tmp_path, seeds):
    records, summary = studies.sided_study(seeds=seeds)
    page = page_of(studies.write(tmp_path, records, summary))
    assert page.index('id="h-balance"') < page.index('id="h-best"')
    picture = page.split('<svg class="roomy"')[1].split("</svg>")[0]
    shown = [arm for arm in summary.arms if arm != "solar"]
    assert re.findall(r'class="label"[^>]*>([^<]+)<', picture) == shown
    assert picture.count('class="cross"') == (0 if len(seeds) == 1 else 2 * len(shown))
    assert "Far outside of the picture: solar" in page
    assert ("no way to tell a difference from chance" in page) == (len(seeds) == 1)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.index("## Learned and forgotten after training") < markdown.index(
        "## After training"
    )


def test_words_follow_roles(tmp_path):
    records, summary = studies.sided_study()
    page = page_of(studies.write(tmp_path, records, summary))
    assert "grown and trained in 6 ways, beside 5 others" in page
    assert "Differences to “trained on”" in page
    assert "grown arms" not in page
    assert "Arms that replay took a part of their sequences from old text instead." in page
    few = ["trained on", "lora", "opt-deus"]
    records, summary = studies.sided_study(arms=few, seeds=(0,))
    page = page_of(studies.write(tmp_path, records, summary))
    assert "grown and trained in 1 way, beside lora" in page
    assert "Arms that replay" not in page
    records, summary = studies.sided_study(arms=few[:2], seeds=(0,))
    page = page_of(studies.write(tmp_path, records, summary))
    assert "tiny-base, trained in 2 ways<" in page
    assert "16 blocks, none new" in page


def test_without_a_record_of_the_reference_the_rest_is_shown(tmp_path):
    records, summary = studies.sided_study(seeds=(0, 1))
    others = [record for record in records if record.role != "reference"]
    page = page_of(studies.write(tmp_path, others, summary.model_copy(update={"differences": []})))
    assert "has no record yet" in page
    assert "Not finished yet:</strong> trained on, seed 0; trained on, seed 1" in page
    assert '<svg class="roomy"' in page


def test_fine_tuning_has_a_picture_of_its_own(tmp_path):
    records, summary = studies.sided_study(arms=list(studies.SIDED)[:4], seeds=(0, 1))
    tuned = [
        studies.tuned(record, index % 4).model_copy(
            update={"after_fine_tuning": studies.sided_scores("t", (0.1 + index / 9, index / 9))}
        )
        for index, record in enumerate(records)
    ]
    given = studies.summary_of(tuned, summary.arms, (0, 1))
    assert given.fine_tuned_front
    page = page_of(studies.write(tmp_path, tuned, given))
    assert page.count('<svg class="roomy"') == 2
    assert "Learned and forgotten after fine-tuning, and the cost" in page


def test_the_search_for_rates_marks_what_was_chosen():
    _, summary = studies.sided_study(seeds=(0,))
    assert rates(summary.rates, "pre-training") is None
    tried = {"lora": {"0.001": 2.75, "0.0005": 2.7}, "wider": {"0.001": None, "0.00025": 2.9}}
    table = rates(tried, "pre-training")
    assert table.header == ["arm", "2.5e−4", "5e−4", "1e−3"]
    written = {name: [(c.text, c.best) for c in cells] for name, cells in table.rows}
    assert written["lora"] == [("", False), ("2.7000", True), ("2.7500", False)]
    assert written["wider"] == [("2.9000", True), ("", False), ("diverged", False)]


def test_pairs_that_the_study_names_stand_first_whichever_way_round(tmp_path):
    records, summary = studies.sided_study()
    shown = results(records, summary)
    scores = [s for s in aggregate.scores(records[0].after) if s.metric == "loss_nats_per_token"]
    pairs = [("lora", "opt-deus"), ("opt-deus", "lora"), ("trained on", "lora")]
    table = shown.chosen_pairs(pairs, scores, "named")
    there, back, base = (
        [float(cell.text.split()[0].replace("−", "-")) for cell in cells] for _, cells in table.rows
    )
    assert there == [-x for x in back]
    assert all(base)
    study = summary.study | {"pairs": [["opt-deus", "lora"]]}
    page = page_of(studies.write(tmp_path, records, summary.model_copy(update={"study": study})))
    assert page.index("Pairs that the study names") < page.index("Every pair of the other arms")


def test_quarters_are_of_the_arms_that_read_the_same():
    records, summary = studies.sided_study(seeds=(0, 1))
    table = stretches(records, summary.arms)
    assert {name for name, _ in table.rows} == {a for a in summary.arms if "replay" not in a}
    ours, theirs = (
        [aggregate.mean_losses(r.train) for r in aggregate.of_arm(records, arm)]
        for arm in ("wider", "trained on")
    )
    for part, cell in enumerate(next(cells for name, cells in table.rows if name == "wider")[1:]):
        mean = sum(a[part] - b[part] for a, b in zip(ours, theirs, strict=True)) / 2
        assert cell.text.startswith(text.difference("loss_nats_per_token", mean))
    whole = aggregate.mean_losses(records[0].train)
    assert whole[0] == pytest.approx(sum(whole[1:]) / 4)
    assert stretches([r for r in records if r.role != "reference"], summary.arms) is None
