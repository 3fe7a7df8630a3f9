"""Records that no run wrote: shown as they are, or refused in one sentence."""

import copy
import io
import json
import math
import random
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from rich.console import Console

import studies
from deepen.cli import main
from deepen.common.errors import DeepenError
from deepen.comparison.results import RECORDS, SUMMARY, read_study
from deepen.report import report, terminal
from deepen.report.studies import pooled_pairs, write_csv

ARMS = ["trained on", "lora (replay=0.25)", "opt-deus"]
ODD = (0, -1, 10**30, 1e-320, 1e308, "NaN", "Infinity", "-Infinity", None, True, [], {}, [[]])
ODD += ("", "a|b", "<script>", "[/bold]", "\u2028", [0, 0, 0], {"a": "b"})
EXAMPLES = 60
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
RAN, RUN = 'data-ran="1"', "document.documentElement.dataset.ran=1"
WAYS = (
    "<script>{run}</script>",
    "</script></style></title></textarea><script>{run}</script>",
    "<img src=x onerror={run}>",
    '"><img src=x onerror={run}>',
    "'><svg onload={run}>",
    '" autofocus tabindex=1 onfocus={run} x="',
    "--><script>{run}</script>",
)
"""What would run where a text is markup, inside a script or style, or inside an attribute."""


def written():
    """Make a small study with sides, tasks, seeds, fine-tuning, alignment and pairs."""
    records, _ = studies.sided_study(arms=ARMS, seeds=(0, 1), texts=2, tasks=True)
    made = []
    for record in records:
        curve = record.train.curve[:5]
        one = record.model_copy(update={"train": record.train.model_copy(update={"curve": curve})})
        one = studies.tuned(one, 0).model_copy(
            update={"after_fine_tuning": studies.sided_scores("t", (0.4, 0.2), 2, True)}
        )
        if record.arm == "opt-deus":
            one = studies.aligned(one)
            blocks = [
                block.model_copy(update={"heat_map": [[0.5, 3.0], [1.0, 40.0]]})
                for block in one.alignment.blocks[:2]
            ]
            alignment = one.alignment.model_copy(update={"blocks": blocks})
            one = one.model_copy(update={"alignment": alignment})
        made.append(one)
    summary = studies.summary_of(made, ARMS, (0, 1), pairs=[ARMS[:2]])
    rates = {ARMS[1]: {"0.001": 3.0, "0.002": None}}
    summary = summary.model_copy(update={"rates": rates, "fine_tuning_rates": rates})
    return (
        [json.loads(record.model_dump_json()) for record in made],
        json.loads(summary.model_dump_json()),
    )


def put(folder, records, summary):
    """Write a study's two files."""
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / RECORDS).write_text(lines, encoding="utf-8")
    (folder / SUMMARY).write_text(json.dumps(summary, ensure_ascii=False), encoding="utf-8")
    return folder


def show(folder):
    """Show a study in every way there is; return the page."""
    page = report(folder).read_text(encoding="utf-8")
    pooled_pairs([folder])
    write_csv([folder], folder / "runs.csv")
    records, summary = read_study(folder)
    Console(file=io.StringIO(), markup=False).print(terminal.study(summary, records))
    return page


def places(tree, path=()):
    """List the keys that lead to every part of a tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, part in inside:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def change(tree, path, value):
    """Return a copy of a tree with one part replaced."""
    changed = copy.deepcopy(tree)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def sampled(count, seed):
    """Draw changes of single parts of the two files."""
    records, summary = written()
    tree = {"records": records, "summary": summary}
    paths = [path for path in places(tree) if len(path) > 1]
    # One place of every kind, so that curves and cells do not crowd out the rest.
    kinds = {tuple(k for k in path if isinstance(k, str)): path for path in paths}
    own = random.Random(seed)
    for _ in range(count):
        path = own.choice([*kinds.values()])
        yield path, own.choice(ODD), tree


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.faults) for s in range(1, 21))]
)
def test_whatever_a_hand_edits_is_shown_or_refused_in_one_sentence(tmp_path, seed):
    shown, refused = 0, list[str]()
    for number, (path, value, tree) in enumerate(sampled(EXAMPLES, seed)):
        edited = change(tree, path, value)
        folder = put(tmp_path / str(number), edited["records"], edited["summary"])
        try:
            show(folder)
            shown += 1
        except DeepenError as error:
            refused.append(str(error))
            refused += [str(file) for file in folder.glob("report.*")]
        except Exception as error:
            raise AssertionError(f"{path} = {value!r}") from error
    assert shown
    assert refused
    assert not [told for told in refused if "\n" in told or told.endswith((".html", ".md"))]


def test_scripts_in_every_text_of_the_records_stay_text(tmp_path):
    script = "<script>alert(1)</script>"
    records, summary = (before_texts(script, part) for part in written())
    page = show(put(tmp_path / "study", records, summary))
    assert page.count("&lt;script&gt;") > 50

    tags = set()

    class Page(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.update((tag, *(name for name, _ in attributes)))

    Page().feed(page)
    assert "h1" in tags
    assert not [tag for tag in tags if "script" in tag]
    told = (tmp_path / "study/report.md").read_text(encoding="utf-8").partition("```yaml")[0]
    assert "&lt;script>" in told
    assert "<script>" not in told


def before_texts(script, part, key=""):
    """Put a script before every text of a record that is a name or a note."""
    if isinstance(part, dict):
        return {
            (script + k if key in NAMED else k): before_texts(
                script, v, key if key == "roles" else k
            )
            for k, v in part.items()
        }
    if isinstance(part, list):
        return [before_texts(script, entry, key) for entry in part]
    return script + part if isinstance(part, str) and key not in WORDS else part


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("way", WAYS)
def test_no_script_in_any_text_runs_in_a_browser(tmp_path, way):
    """Nor in the name of the study's folder, if such a name can be one."""
    script = way.format(run=RUN)
    bare = tmp_path / "bare.html"
    bare.write_text(f"<title>t</title><p title=\"{script}\">{script}</p><p title='{script}'>")
    assert RAN in in_browser(bare)  # so that it would be seen
    name = script if "/" not in script else "study"
    records, summary = (before_texts(script, part) for part in written())
    folder = put(tmp_path / name, records, summary)
    show(folder)
    page = in_browser(folder / "report.html")
    assert page.count("dataset.ran") > 50
    assert RAN not in page


def in_browser(file):
    """Return what a page is once its scripts have run."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=1000"]
    ended = subprocess.run(
        [*command, f"--user-data-dir={file.parent / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "</html>" in ended.stdout, ended.stderr
    return ended.stdout


NAMED = {"roles", "rates", "fine_tuning_rates", "versions", "norm_ratios"}
"""Dictionaries whose keys are names."""
WORDS = {"role", "stage", "precision", "kind", "side", "counted", "roles", "trains", "budget"}
"""Texts that schemas know; anything else they refuse."""


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e308])
def test_losses_that_are_no_numbers_are_shown_as_that(tmp_path, loss):
    records, summary = written()
    for record in records:
        if record["arm"] == "opt-deus":
            record["train"]["curve"][2]["loss_nats_per_token"] = str(loss)
            for text in record["after"]["texts"]:
                text |= {"loss_nats_per_token": str(loss), "token_perplexity": str(loss)}
    page = show(put(tmp_path / "study", records, summary))
    assert {math.inf: "∞", -math.inf: "−∞"}.get(loss, "NaN" if loss != loss else "e+308") in page
    assert "nan%" not in page
    assert "inf%" not in page
    read, _ = read_study(tmp_path / "study")
    made = studies.summary_of(read, ARMS, (0, 1))
    assert "opt-deus" not in made.front


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r, s: r[0]["train"].update(parameters=0), "train.parameters: .* greater than"),
        (lambda r, s: r[0]["train"].update(curve=[]), "train.curve"),
        (lambda r, s: r.append(r[0]), "has 2 lines of arm 'trained on' with seed 0"),
        (lambda r, s: s["arms"].remove("opt-deus"), "names 'opt-deus', which is none of arms"),
        (lambda r, s: s["roles"].pop("opt-deus"), "roles lacks the arm 'opt-deus'"),
        (lambda r, s: s["arms"].append("opt-deus"), "arms are none, or one stands there twice"),
        (lambda r, s: r.__delitem__(slice(1, None)) or r[0].update(arm="x"), "no arm and seed"),
        (lambda r, s: s.update(rates={"opt-deus": {"fast": 1.0}}), "a learning rate is a number"),
    ],
)
def test_what_cannot_be_shown_ends_with_code_2(tmp_path, capsys, edit, said):
    records, summary = written()
    edit(records, summary)
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(put(tmp_path / "study", records, summary))])
    with pytest.raises(DeepenError, match=said):
        report(tmp_path / "study")
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "study/report.html").exists()


def test_files_that_are_no_text_are_damaged(tmp_path):
    folder = put(tmp_path / "study", *written())
    (folder / RECORDS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeepenError, match=r"records.jsonl' cannot be read .*UTF-8"):
        report(folder)
