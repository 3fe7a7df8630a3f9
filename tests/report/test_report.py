"""The report is a pure function of the records, and needs nothing but itself."""

import re
from html.parser import HTMLParser

import pytest

import studies
from deepen.common.errors import DeepenError
from deepen.report import report


class Page(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self):
        super().__init__()
        self.fetched, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("script", "link", "img", "iframe", "object"):
            self.fetched.append((tag, given))
        if tag not in ("meta", "br", "img", "link", "hr", "input", "col", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of three seeds; the folder, the page, its text, and the records."""
    records, summary = studies.study()
    folder = studies.write(tmp_path_factory.mktemp("study"), records, summary)
    html = report(folder).read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    return folder, html, page, records, summary


def test_the_page_is_whole_and_fetches_nothing(written):
    _, html, page, *_ = written
    assert page.open == []
    assert not page.fetched
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", html)
    assert 'name="viewport"' in html
    assert "prefers-color-scheme" in html


def test_every_arm_and_its_scores_are_told(written):
    folder, _, page, records, summary = written
    text = " ".join(page.text)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for arm in summary.arms:
        assert arm in text
        assert arm in markdown
        losses = [r.after.texts[0].loss_nats_per_token for r in records if r.arm == arm]
        assert f"{sum(losses) / len(losses):.4f}" in text
    assert all(version in text for version in studies.VERSIONS.values())


def test_same_records_same_bytes(written, tmp_path):
    _, html, _, records, summary = written
    folder = studies.write(tmp_path, records, summary)
    assert report(folder).read_text(encoding="utf-8") == html


def test_a_study_of_one_seed_says_that_it_shows_little(tmp_path):
    folder = studies.write(tmp_path, *studies.study(seeds=(0,)))
    assert "One seed only" in report(folder).read_text(encoding="utf-8")


def test_however_many_arms_no_two_look_alike(tmp_path):
    arms = [studies.BASE, *(f"llama-pro {i}" for i in range(20))]
    records, summary = studies.study(arms=arms, seeds=(0,))
    html = report(studies.write(tmp_path, records, summary)).read_text(encoding="utf-8")
    legend = re.search(r'<p class="legend">(.*?)</p>', html, re.DOTALL)
    keys = re.findall(r'class="(key [^"]*)">(.*?)</svg>', legend[1], re.DOTALL)
    assert len(keys) == len(set(keys)) == len(arms)


def test_fine_tuning_has_a_table_and_curves_of_its_own(tmp_path):
    records, summary = studies.study(seeds=(0, 1))
    arms = {arm: index for index, arm in enumerate(summary.arms)}
    plain = report(studies.write(tmp_path, records, summary)).read_text(encoding="utf-8")
    assert "fine-tuning" not in plain.casefold()
    assert plain.count('<figure class="chart">') == 3
    tuned = [studies.tuned(record, arms[record.arm]) for record in records]
    html = report(studies.write(tmp_path, tuned, summary)).read_text(encoding="utf-8")
    assert "After fine-tuning" in html
    assert html.count('<figure class="chart">') == 6
    pre_training, fine_tuning = html.split("Supervised fine-tuning")
    drawn = re.compile(r'<path class="(?:line|band) s\d(?: d\d)?" d="([^"]+)"')
    shapes = [drawn.findall(part) for part in (pre_training, fine_tuning)]
    assert not set(shapes[0]) & set(shapes[1]), "curves of one stage are drawn again"
    # A line and a band for each arm, and once more less the base in the difference.
    assert [len(paths) for paths in shapes] == [2 * (3 * len(arms) - 1)] * 2
    assert "After fine-tuning" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_study_that_is_half_fine_tuned_shows_the_curves_that_there_are(tmp_path):
    records, summary = studies.study(seeds=(0, 1))
    tuned = [studies.tuned(r, 0) if r.arm in ("base", "solar") else r for r in records]
    html = report(studies.write(tmp_path, tuned, summary)).read_text(encoding="utf-8")
    assert "After fine-tuning" not in html
    lines = re.findall(r'<path class="line s(\d) d\d"', html.split("Supervised fine-tuning")[1])
    assert set(map(int, lines)) == {summary.arms.index("base"), summary.arms.index("solar")}


@pytest.mark.parametrize(
    ("study", "title"),
    [
        ({"title": "Ours & theirs"}, "Ours & theirs"),
        ({}, "tops: llama-8b/base/model, grown and trained in 6 ways"),
        ({"output": "runs/study"}, "runs/study: llama-8b/base/model, grown and trained in 6 ways"),
        (
            {"output": "x/demo/study/"},
            "demo/study: llama-8b/base/model, grown and trained in 6 ways",
        ),
        ({"base": "meta-llama/Llama-3.2-1B"}, "tops: Llama-3.2-1B, grown and trained in 6 ways"),
        ({"base": "./model"}, "tops: model, grown and trained in 6 ways"),
        ({"base": "."}, "tops: ., grown and trained in 6 ways"),
    ],
)
def test_the_title_is_the_study_s_or_names_its_folder_and_base(tmp_path, study, title):
    records, summary = studies.study(seeds=(0,))
    given = summary.study | {"output": "runs/tops", "base": "/data/llama-8b/base/model"} | study
    report(studies.write(tmp_path, records, summary.model_copy(update={"study": given})))
    page = Page()
    page.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert title in page.text
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith(f"# {title}\n")


@pytest.mark.parametrize("missing", ["records.jsonl", "summary.json"])
def test_a_folder_without_a_study_is_refused(tmp_path, missing):
    folder = studies.write(tmp_path, *studies.study(seeds=(0,)))
    (folder / missing).unlink()
    with pytest.raises(DeepenError):
        report(folder)
    assert not (folder / "report.html").exists()
