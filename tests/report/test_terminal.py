"""What a person sees: nothing cut off at 80 columns, a heading for every number."""

import io
import re

from rich.console import Console

import studies
from deepen import methods
from deepen.comparison import balance
from deepen.records.growth import AlignmentProof
from deepen.records.training import StepTime
from deepen.records.verification import InspectRecord
from deepen.report import terminal
from deepen.report.methods import method_table


def shown(renderable) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    return console.file.getvalue()


def test_learned_and_forgotten_fit_80_columns_with_the_front_starred():
    records, summary = studies.sided_study()
    table = terminal.learned_and_forgotten(records)
    assert all(column.header for column in table.columns)
    text = shown(table)
    assert "…" not in text
    lines = text.splitlines()
    assert lines[1].split() == ["base,", "before", "training", "3.567", "3.186"]
    gained = balance.all_changes(records)
    for arm in ("trained on", "lora", "solar"):
        line = next(x for x in lines if re.match(rf"(\* )?{arm} +\d", x))
        assert line.startswith("* ") == (arm in summary.front)
        for name in ("learned", "forgotten"):
            assert f"{sum(gained[arm, seed][name] for seed in range(3)) / 3:+.3f}" in line
    assert "learned" not in shown(terminal.study(studies.study(seeds=(0,))[1]))
    text = shown(terminal.study(summary, records))
    assert "arm - reference" in text
    assert "loss_nats_per_token" not in text
    assert text.count("forgotten") == 1 + len(summary.arms) - 1


def test_a_stack_brackets_new_blocks():
    assert terminal.stack(4, [1, 3]).plain == "0 [1] 2 [3]"


def proof(below, change):
    aligned = change < 1e-3
    return AlignmentProof(below=below, above=below + 1, relative_change=change, aligned=aligned)


def test_a_growth_tells_what_was_aligned_and_what_was_not():
    record = studies.grow_record("opt-deus", 0)
    assert "aligned" not in shown(terminal.growth(record))
    proofs = [proof(7, 4e-7), proof(8, 2e-7), proof(9, 0.03)]
    text = " ".join(shown(terminal.growth(record.model_copy(update={"proofs": proofs}))).split())
    assert "aligned 2 of 3 gaps; what an aligned block computes changes by 4e-07 at most" in text
    assert "not aligned: 9|10 (would change by 3e-02)" in text


def test_a_run_of_first_steps_alone_says_that_none_was_timed():
    record = studies.train_record("opt-deus", 0, 0, None)
    none = dict.fromkeys(StepTime.model_fields, 0.0)
    short = record.model_copy(update={"step_time": StepTime(**none)})
    for shown, words in ((record, "s: forward"), (short, "not timed: the run has only first")):
        console = Console(file=io.StringIO(), width=120)
        console.print(terminal.training(shown))
        assert words in console.file.getvalue()


def test_alignment_of_experts_fits_80_columns():
    alignment = studies.aligned(studies.arm_record("opt-deus", 0, 1)).alignment
    block = alignment.blocks[0]
    parts = [
        part.model_copy(update={"part": "expert neurons", "units": 14336, "in_place": 1.0})
        for part in block.parts
    ]
    wide = block.model_copy(update={"below": 30, "above": 32, "parts": parts})
    record = InspectRecord.model_construct(
        alignment=alignment.model_copy(update={"blocks": [wide]})
    )
    text = "".join(shown(part) for part in terminal._aligned(record))
    assert "…" not in text
    assert all(name in text for name in ("moved", "4e-07", "norm"))


def test_options_that_methods_share_stand_once():
    text = shown(method_table([methods.get(name) for name in methods.names()]))
    for method in map(methods.get, methods.names()):
        assert all(text.count(f"--set {name}=") == 1 for name in method.options.model_fields)
    assert "--set output_scale=0.0 (1.0 in avg-deus, lesa, repeat)" in text
    assert "shared     by opt-deus, avg-deus\n" in "\n".join(map(str.rstrip, text.splitlines()))


def test_sizes_read_well():
    assert [terminal.size(n) for n in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
