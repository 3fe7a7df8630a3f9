"""Fine-tuning rows and a multiple-choice task: which docstring belongs to which function."""

import ast
import json
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TASK = "docstrings"
"""Name of the task."""
_CHOICES = 4
_LONGEST = 120

_TASK_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


class Described(NamedTuple):
    """A function and the first line of its docstring."""

    prompt: str
    """Signature, up to where the docstring begins."""
    summary: str
    """The docstring's first line."""


def described(texts: Iterable[str]) -> Iterator[Described]:
    """Find the functions of Python sources that have a docstring of one short first line."""
    for text in texts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old sources have invalid escapes
                tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                summary = docstring.splitlines()[0].strip()
                signature = f"def {node.name}({ast.unparse(node.args)}):"
                if len(summary) >= 10 and len(signature) + len(summary) <= _LONGEST:
                    yield Described(f'{signature}\n    """', summary)


def write_rows(file: Path, texts: Iterable[str]) -> int:
    """Write fine-tuning rows, prompt and completion; return their number."""
    rows = [{"prompt": d.prompt, "completion": f'{d.summary}"""'} for d in described(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def write_task(
    folder: Path, texts: Sequence[str], count: int, seed: int, home: Path | None = None
) -> None:
    """Write a lm-evaluation-harness task: the right summary among those of other functions.

    Args:
        folder: Where the task's YAML and its questions go.
        texts: Held-out sources.
        count: Number of questions, as far as there are functions.
        seed: Of which functions are asked for, and of the order of choices.
        home: Where the folder will lie when it is read; by default where it is.
    """
    draw = random.Random(seed)
    functions = sorted({d.summary: d for d in described(texts)}.values())
    draw.shuffle(functions)
    questions = []
    for right in functions[:count]:
        others = draw.sample([f for f in functions if f != right], _CHOICES - 1)
        choices = [f'{function.summary}"""' for function in (right, *others)]
        answer = draw.randrange(_CHOICES)
        choices[0], choices[answer] = choices[answer], choices[0]
        questions.append({"prompt": right.prompt, "choices": choices, "answer": answer})
    file = folder / f"{TASK}.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    (folder / f"{TASK}.yaml").write_text(
        _TASK_YAML.format(task=TASK, file=(home or folder).resolve() / file.name), encoding="utf-8"
    )
