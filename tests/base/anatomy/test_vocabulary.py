"""The words of the tables: mypy knows them all, each has a meaning, none is idle."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from deepen.base.anatomy import FAMILIES, vocabulary

ROOT = Path(__file__).parents[3]
PARTS = [
    part
    for family in FAMILIES.values()
    for table in family.kinds.values()
    for stored in table.values()
    for part in stored.parts
]
USED = {
    # What a quantised weight is multiplied with stands in no family's table.
    "Role": {part.role for part in PARTS} | {"scale"},
    # How many groups experts form is a size that no tensor has.
    "Axis": {axis for part in PARTS for axis in part.axes} | {"expert_groups"},
}


@pytest.mark.parametrize("kind", ["Role", "Axis"])
def test_tables_use_every_word_and_no_other(kind):
    words = get_args(getattr(vocabulary, kind))
    assert len(words) == len(set(words))
    assert set(words) == USED[kind]


@pytest.mark.parametrize("kind", ["Role", "Axis"])
def test_every_word_has_a_meaning(kind):
    source = Path(vocabulary.__file__).read_text(encoding="utf-8")
    lines = source.split(f"{kind} = Literal[\n")[1].split("\n]\n")[0].split("\n")
    entries = [line.partition(",  # ") for line in lines if line.startswith('    "')]
    assert [word.strip(' "') for word, _, _ in entries] == list(get_args(getattr(vocabulary, kind)))
    assert all(meaning for _, _, meaning in entries)


CODE = """
from deepen.base.anatomy import BlockAnatomy, TensorSpec
from deepen.base.anatomy.family import Family
from deepen.base.anatomy.parts import bank, fused, linear, norm, other

linear("mlp.down_proj", "ffn_output", "residual", "ffn")
norm("q_norm", "query_norm", "head")
fused("qkv", {"query": "query"})
bank("experts", {"up": ("expert_ffn", "residual")})
other("sinks", "sinks", ("heads",))
TensorSpec("gate", ("ffn", "residual"))
Family("mine", {}, varying=frozenset({"attended"}))

def read(anatomy: BlockAnatomy) -> None:
    anatomy.name("ffn_norm")
    anatomy.sizes["expert"]
    anatomy.block["x"].role == "router"
"""
WORDS = """
    ffn_output ffn query_norm head query up expert_ffn heads gate attended ffn_norm expert router
"""
# Strict as the project is; nothing but the tables is read, which takes seconds.
CONFIG = f"""
[mypy]
strict = true
mypy_path = {ROOT / "src"}
follow_imports = skip
[mypy-deepen.base.anatomy.*]
follow_imports = silent
"""


def test_mypy_refuses_every_misspelt_word(tmp_path):
    right = CODE.strip().split("\n")
    wrong = [
        line.replace(f'"{word}"', f'"{word}x"')
        for word in WORDS.split()
        for line in right
        if f'"{word}"' in line
    ]
    indented = [line for line in wrong if line.startswith(" ")]
    (tmp_path / "mypy.ini").write_text(CONFIG)
    code = [*right, *indented, *(line for line in wrong if line not in indented)]
    (tmp_path / "tables.py").write_text("\n".join(code))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "tables.py"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    refused = {int(line.split(":")[1]) for line in output.split("\n") if ": error:" in line}
    assert refused == set(range(len(right) + 1, len(code) + 1)), output
