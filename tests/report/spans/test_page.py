"""The page of a scan: every span a square, no text of a record markup, damage one sentence."""

import io
import json
import re

import pytest
from rich.console import Console

from deepen.common.errors import DeepenError
from deepen.records.growth import BaseIdentity
from deepen.records.scan import Choice, ScanRecord, ScanRequest, SpanScore, SpanTask
from deepen.report import report
from deepen.report.spans import page
from deepen.report.spans.terminal import scanned

SPANS = [(0, 1, 0.4), (0, 3, -0.02), (2, 3, 0.004), (4, 5, float("inf")), (2, 5, -0.2)]


def record(**changes):
    """Make a record of a scan at stride 2."""
    spans = [
        SpanScore(first=i, last=j, choosing=d, confirming=d + 0.01, chance=0.5, losses=[d + 3] * 4)
        for i, j, d in SPANS
    ]
    best = {"first": 2, "last": 5, "choosing": -0.2, "chance": 0.01, "confirming": -0.19}
    fields = {
        "base": BaseIdentity(name="<b>base</b>", revision=None, fingerprint="f" * 64),
        "depth": 6,
        "request": ScanRequest(longest=4, stride=2),
        "text": "mine & yours.txt",
        "text_sha256": "0" * 64,
        "tokens": 400,
        "base_losses": [3.0] * 4,
        "spans": spans,
        "choice": Choice(**best, low=-0.25, high=-0.13),
        "flips": 4,
        "exact": True,
        "verdict": "helps",
        "sentence": "Span 2-5 lowers the <loss>.",
        "command": "deepen grow base OUT --method repeat --set span=2-5",
        "block_runs": 40,
        "passes": 8.25,
        "device": "cpu",
        "wall_seconds": 1.5,
        "peak_bytes": 10**9,
        "versions": {"torch": "2"},
    }
    return ScanRecord(**(fields | changes))


@pytest.fixture
def shown(tmp_path):
    """Return what writes a record's report, and gives its page and its Markdown."""

    def show(made):
        (tmp_path / "scan.json").write_text(made.model_dump_json())
        file = report(tmp_path)
        return file.read_text(), file.with_name("report.md").read_text()

    return show


def test_every_span_is_a_square_in_both_halves(shown):
    html, markdown = shown(record())
    squares = re.findall(r'<rect class="square (\w+)( chosen)?" x="([\d.]+)%" y="([\d.]+)%"', html)
    assert len(squares) == 2 * len(SPANS)
    # First block from top to bottom, last one from left to right; six blocks, two to a square.
    place = {(i, j): (f"{(j - 1) * 100 / 6:.2f}", f"{i * 100 / 6:.2f}") for i, j, _ in SPANS}
    shades = {place[i, j]: shade for (i, j, _), shade in zip(SPANS, SHADES, strict=True)}
    assert {(x, y): shade for shade, _, x, y in squares[: len(SPANS)]} == shades
    assert [(x, y) for _, chosen, x, y in squares if chosen] == [place[2, 5]] * 2
    assert html.count("<title>2-5: −0.2000 choosing, −0.1900 confirming</title>") == 2
    assert "−0.2000" in markdown
    assert "| 4-5 | 2 | +∞ |" in markdown


SHADES = ("w3", "b1", "w0", "w4", "b3")


def test_shades_end_where_the_legend_says():
    ends = [end for end, _, _ in page.LEVELS]
    assert ends == sorted(ends)
    for end, after in zip(page.LEVELS, page.LEVELS[1:], strict=False):
        assert page._shade(end[0] - 1e-9) == end[1]
        assert page._shade(end[0]) == after[1]
    assert page._shade(float("nan")) == page._shade(float("inf")) == "w4"


def test_no_text_of_a_record_is_markup(shown):
    html, markdown = shown(record())
    assert "<b>base" not in html + markdown
    assert "&lt;b&gt;base" in html
    assert "mine &amp; yours.txt" in html
    assert "the &lt;loss&gt;" in html
    assert "the &lt;loss>" in markdown
    assert html.count("<style>") == 1
    assert "http" not in html.replace("http-equiv", "")


def test_the_same_record_gives_the_same_bytes(shown):
    assert shown(record()) == shown(record())


def test_tasks_are_shown_with_their_intervals(shown):
    task = SpanTask(
        first=2,
        last=5,
        task="rivers",
        metric="acc",
        base=0.5,
        value=0.45,
        low=-0.1,
        high=0.0,
        examples=12,
        higher_is_better=True,
    )
    html, markdown = shown(record(tasks=[task]))
    assert "| 2-5 | rivers | accuracy | 50.00 | 45.00 | −5.00 [−10.00, +0.00] | 12 |" in markdown
    assert "which chose nothing" in html


def test_the_terminal_says_what_helps_and_how_to_make_it():
    console = Console(width=200, file=io.StringIO())
    console.print(scanned(record()))
    told = console.file.getvalue()
    assert "Span 2-5 lowers the <loss>." in told
    assert "--set span=2-5" in told
    assert told.index("2-5  ") < told.index("0-3  "), "the best one first"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("spans", [], "at least 1 item"),
        ("depth", 3, "reaches beyond the base"),
        ("depth", 10**9, "less than or equal to 4096"),
        ("base_losses", [3.0] * 6, "not one loss for each sequence"),
        ("base_losses", [3.0], "at least 4 items"),
        ("choice", None, "choice"),
        ("verdict", "surely", "verdict"),
        ("flips", 0, "flips"),
        ("extra", 1, "extra"),
    ],
)
def test_damage_is_one_sentence(tmp_path, key, value, sentence):
    content = json.loads(record().model_dump_json()) | {key: value}
    (tmp_path / "scan.json").write_text(json.dumps(content))
    with pytest.raises(DeepenError, match=sentence) as refused:
        report(tmp_path)
    assert "scan again" in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.json"]


def test_a_choice_among_spans_that_were_not_tried_is_damage(tmp_path):
    content = json.loads(record().model_dump_json())
    content["choice"] |= {"first": 1}
    (tmp_path / "scan.json").write_text(json.dumps(content))
    with pytest.raises(DeepenError, match="was not tried"):
        report(tmp_path)
    content["choice"] |= {"first": 2}
    content["spans"].append(content["spans"][0])
    (tmp_path / "scan.json").write_text(json.dumps(content))
    with pytest.raises(DeepenError, match="stands there twice"):
        report(tmp_path)
