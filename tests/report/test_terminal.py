"""What a person sees: nothing cut off at 80 columns, a heading for every number."""

import io

from rich.console import Console

import studies
from deepen.report import terminal as printing


def shown(renderable) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    return console.file.getvalue()


def test_arms_fit_80_columns_with_a_heading_each():
    records, _ = studies.study(seeds=(0,))
    table = printing.arms(records)
    assert all(column.header for column in table.columns)
    text = shown(table)
    assert "…" not in text
    assert all(f"{r.after.texts[0].token_perplexity:.3f}" in text for r in records)


def test_a_stack_brackets_new_blocks():
    assert printing.stack(4, [1, 3]).plain == "0 [1] 2 [3]"


def test_sizes_read_well():
    assert [printing.size(n) for n in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
