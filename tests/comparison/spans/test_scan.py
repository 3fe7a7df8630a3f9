"""A scan from text to record: against growing and evaluating, resumed, refused."""

import errno
import json
import os

import pytest
import yaml

import deepen
import tiny
from commands import run
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.comparison.spans import scan as scanning
from deepen.comparison.spans.record import read_scan
from deepen.comparison.spans.stack import Stack

SMALL = {"longest": 2, "stride": 2, "max_tokens": 512, "sequence_length": 32}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of a few documents, of which nothing that fills a sequence lies over two."""
    file = tmp_path_factory.mktemp("texts") / "mine.jsonl"
    rows = [PASSAGE, PASSAGE[::-1], PASSAGE.upper()]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def scanned(llama, text, tmp_path_factory):
    """A small scan: its folder, its record, and what was told."""
    out, told = tmp_path_factory.mktemp("scans") / "out", []
    record = deepen.scan(llama, out, calibration=text, **SMALL, tell=told.append)
    return out, record, told


def without_time(record):
    return record.model_copy(update={"wall_seconds": 0.0, "peak_bytes": 0})


def test_the_record_is_what_lies_in_the_folder(scanned, llama):
    out, record, told = scanned
    assert [file.name for file in out.iterdir()] == ["scan.json"]
    assert read_scan(out) == record
    assert [(s.first, s.last) for s in record.spans] == [(0, 1), (2, 3), (4, 5)]
    assert (record.depth, record.tokens, len(record.base_losses)) == (6, 16 * 31, 16)
    assert told == [
        f"3 spans on 496 tokens in 16 sequences: {record.block_runs} blocks run, "
        f"{record.passes:.1f} passes of the whole model."
    ]
    assert [file.name for file in out.parent.iterdir()] == ["out"], "nothing is left beside it"


def test_halves_alternate_and_differences_are_to_the_base(scanned):
    _, record, _ = scanned
    for span in record.spans:
        own = [a - b for a, b in zip(span.losses, record.base_losses, strict=True)]
        assert span.choosing == pytest.approx(sum(own[::2]) / 8)
        assert span.confirming == pytest.approx(sum(own[1::2]) / 8)


def test_a_loss_is_that_of_the_model_which_the_command_grows(scanned, llama, text, tmp_path):
    _, record, _ = scanned
    grown = tmp_path / "grown"
    words = record.command.split()
    assert words[:4] == ["deepen", "grow", str(llama), "OUT"]
    options = dict(word.split("=") for word in words if "=" in word)
    assert options["trains"] == "nothing"
    deepen.grow(llama, grown, method="repeat", options=options)
    # The same windows as `evaluate` takes: the first document's, which the sequences begin with.
    first = tmp_path / "first.txt"
    first.write_text(PASSAGE)
    chosen = next(s for s in record.spans if f"{s.first}-{s.last}" == options["span"])
    for model, losses in ((grown, chosen.losses), (llama, record.base_losses)):
        found = deepen.evaluate(
            model, perplexity=[first], sequence_length=31, max_tokens=31, batch_size=1
        )
        assert found.texts[0].loss_nats_per_token == pytest.approx(losses[0], abs=1e-5)


def test_as_many_blocks_run_as_were_told(llama, text, tmp_path, monkeypatch):
    stacks, learn = [], Stack._learn
    monkeypatch.setattr(Stack, "_learn", lambda self: stacks.append(self) or learn(self))
    how = SMALL | {"longest": 3, "stride": 1, "times": 2}
    record = deepen.scan(llama, tmp_path / "out", calibration=text, **how)
    assert [stack.runs for stack in stacks] == [record.block_runs]
    plain = sum(6 + 2 * (s.last - s.first + 1) for s in record.spans)
    assert record.block_runs < 0.75 * plain, "states are shared"


def test_a_killed_scan_goes_on_to_the_same_record(scanned, llama, text, tmp_path, monkeypatch):
    out, tried, compute = tmp_path / "out", [], Stack.losses

    def dying(self, state, given):
        tried.append(state)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return compute(self, state, given)

    monkeypatch.setattr(Stack, "losses", dying)
    with pytest.raises(KeyboardInterrupt) as killed:
        deepen.scan(llama, out, calibration=text, **SMALL)
    assert "--resume" in killed.value.__notes__[0]
    assert not out.exists()
    file = tmp_path / ".out.deepen-unfinished/deepen-spans.jsonl"
    with file.open("a") as stream:
        stream.write("[2, 3, [7.1, 7")  # as a kill leaves it
    with pytest.raises(DeepenError, match="An unfinished run lies in"):
        deepen.scan(llama, out, calibration=text, **SMALL)
    with pytest.raises(DeepenError, match=r"had another base, .* or options"):
        deepen.scan(llama, out, calibration=text, **(SMALL | {"times": 2}), resume=True)
    tried.clear()
    monkeypatch.setattr(Stack, "losses", lambda *given: tried.append(given) or compute(*given))
    record = deepen.scan(llama, out, calibration=text, **SMALL, resume=True)
    assert without_time(record) == without_time(scanned[1])
    assert len(tried) == 3, "the base, and the two spans that were not finished"


def test_a_full_disk_is_no_fault_of_the_model(llama, text, tmp_path, monkeypatch):
    """What is finished is kept, and not thrown away as after a mistake in the input."""
    compute, tried = Stack.losses, []

    def full(self, state, given):
        tried.append(state)
        if len(tried) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return compute(self, state, given)

    monkeypatch.setattr(Stack, "losses", full)
    with pytest.raises(OSError, match="No space left") as failed:
        deepen.scan(llama, tmp_path / "out", calibration=text, **SMALL)
    assert "--resume" in failed.value.__notes__[0]
    lines = (tmp_path / ".out.deepen-unfinished/deepen-spans.jsonl").read_text().split()
    assert lines


def test_only_a_scan_is_replaced(scanned, llama, text, tmp_path):
    out = tmp_path / "out"
    how = {"calibration": text, **SMALL}
    deepen.scan(llama, out, **how)
    with pytest.raises(DeepenError, match="exists; choose another place or pass --overwrite"):
        deepen.scan(llama, out, **how)
    again = deepen.scan(llama, out, **how, overwrite=True)
    assert without_time(again) == without_time(scanned[1])
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(DeepenError, match="is not a scan, so --overwrite will not delete it"):
        deepen.scan(llama, other, **how, overwrite=True)
    with pytest.raises(DeepenError, match="lies in MODEL's own folder"):
        deepen.scan(llama, llama / "scan", **how)


@pytest.mark.parametrize(
    ("content", "how", "sentence"),
    [
        (b"", {}, "is empty"),
        (b"\xff\xfe\x00\x01" * 20, {}, "not readable UTF-8"),
        (b"Too short.", {}, "fills 0 sequences of 32 tokens, and a scan needs 8"),
        (b'{"messages": []}', {"name": "chats.jsonl"}, "chat|answer"),
        (None, {}, "cannot be read"),
        (PASSAGE.encode(), {"sequence_length": 200}, "has only 128 positions"),
        (PASSAGE.encode(), {"stride": 4}, "No span of at most 2 of 6 blocks"),
        (PASSAGE.encode(), {"longest": 0}, "greater than or equal to 1"),
        (PASSAGE.encode(), {"max_tokens": 10**9}, "less than or equal to"),
        (PASSAGE.encode(), {"times": 65}, "less than or equal to 64"),
        (PASSAGE.encode(), {"longer": 3}, "did you mean 'longest'"),
        (PASSAGE.encode(), {"budget": 2}, "--budget is 2, in which no grid fits; raise it"),
        (PASSAGE.encode(), {"device": "quantum"}, "Device 'quantum'"),
    ],
)
def test_what_cannot_be_scanned_is_one_sentence(llama, tmp_path, content, how, sentence):
    how, out = dict(how), tmp_path / "out"
    text = tmp_path / how.pop("name", "text.txt")
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(DeepenError, match=sentence) as refused:
        deepen.scan(llama, out, calibration=str(text), **(SMALL | how))
    assert "\n" not in str(refused.value)
    assert {file.name for file in tmp_path.iterdir()} <= {text.name}


def test_a_pipe_is_not_waited_for(llama, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeepenError, match="no regular file"):
        deepen.scan(llama, tmp_path / "out", calibration=str(tmp_path / "pipe"))


def test_a_base_that_computes_no_numbers_is_refused(text, tmp_path):
    module = tiny.model()
    module.model.layers[2].mlp.down_proj.weight.data.fill_(float("nan"))
    module.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(DeepenError, match="computes no numbers"):
        deepen.scan(tmp_path / "base", tmp_path / "out", calibration=text, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_bos_stands_before_every_sequence(llama, text, tmp_path):
    base = tmp_path / "base"
    tiny.save(base)
    tiny.tokenizer("<eos> $A").save_pretrained(base)
    record = deepen.scan(base, tmp_path / "out", calibration=text, **SMALL)
    assert record.tokens == len(record.base_losses) * 30


@pytest.fixture(scope="module")
def rivers(tmp_path_factory):
    """A task of twelve questions that reads a file."""
    made = tmp_path_factory.mktemp("own-tasks")
    sentences = [" ".join(PASSAGE.split()[i : i + 9]) for i in range(0, 72, 6)]
    rows = [
        {"question": text[:30], "choices": [text[30:], "the water", "Paris"], "answer": i % 3}
        for i, text in enumerate(sentences)
    ]
    (made / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "rivers",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(made / "rows.jsonl")},
            "cache_dir": str(made / "cache"),
        },
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (made / "rivers.yaml").write_text(yaml.safe_dump(task))
    return made


def test_tasks_are_those_of_evaluate_for_the_base_and_the_best_spans(
    scanned, llama, text, rivers, tmp_path
):
    out, grown = tmp_path / "out", tmp_path / "grown"
    tasks = {"tasks": ["rivers"], "task_folders": [rivers]}
    record = deepen.scan(llama, out, calibration=text, **SMALL, **tasks)
    assert record.spans == scanned[1].spans
    ordered = sorted(record.spans, key=lambda span: span.choosing)
    assert [(one.first, one.last) for one in record.tasks] == [(s.first, s.last) for s in ordered]
    assert (record.choice.first, record.choice.last) == (ordered[0].first, ordered[0].last)
    worst = record.tasks[-1]
    options = {"span": f"{worst.first}-{worst.last}"}
    deepen.grow(llama, grown, method="repeat", options=options)
    for model, value in ((llama, worst.base), (grown, worst.value)):
        (score,) = deepen.evaluate(model, **tasks).tasks
        assert (score.metric, score.value) == (worst.metric, pytest.approx(value))
    assert worst.examples == 12
    assert worst.low <= worst.value - worst.base <= worst.high
    with pytest.raises(DeepenError, match="There is no task folder"):
        deepen.scan(llama, grown / "x", calibration=text, tasks=["x"], task_folders=["none"])


def test_in_a_terminal(llama, text, tmp_path, capsys):
    out = tmp_path / "out"
    how = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    code, shown, told = run(capsys, "scan", llama, out, "--calibration", text, *how)
    assert code == 0
    assert "3 of up to 2 blocks, at multiples of 2, repeated once" in " ".join(shown.split())
    assert read_scan(out).sentence in " ".join(shown.split())
    assert "passes of the whole model" in told
    code, shown, _ = run(capsys, "report", out)
    assert (code, shown.strip()) == (0, str(out / "report.html"))
    code, _, told = run(capsys, "scan", llama, out, "--calibration", text, *how, "--budget", 1)
    assert code == 2
    assert "exists" in told
    assert scanning.SCAN == "scan.json"
