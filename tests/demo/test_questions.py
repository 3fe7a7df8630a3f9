"""Questions made of sources: right answers, stable order."""

import json

import yaml

from deepen.demo.questions import described, write_rows, write_task

SOURCE = '''
def {name}(values, *, weights=None):
    """Return the {name} of a list of numbers.

    More."""
    return 1

def bare(x):
    return x

class C:
    def method(self):
        "Short but long enough."
'''
NAMES = ("mean", "median", "mode", "range", "variance", "sum", "product")


def test_functions_with_a_short_first_line_are_found():
    functions = list(described([SOURCE.format(name="mean"), "def broken(:", "\0"]))
    assert [d.summary for d in functions] == [
        "Return the mean of a list of numbers.",
        "Short but long enough.",
    ]
    assert functions[0].prompt == 'def mean(values, *, weights=None):\n    """'


def test_rows_are_prompt_and_completion(tmp_path):
    assert write_rows(tmp_path / "rows.jsonl", [SOURCE.format(name="mean")]) == 2
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert (row["prompt"] + row["completion"]).startswith("def mean(values, *, weights=None):\n")
    assert row["completion"] == 'Return the mean of a list of numbers."""'


def test_the_answer_is_the_function_s_own_summary_and_choices_are_distinct(tmp_path):
    texts = [SOURCE.format(name=name) for name in NAMES]
    write_task(tmp_path, texts, 5, seed=0)
    questions = [
        json.loads(line) for line in (tmp_path / "docstrings.jsonl").read_text().splitlines()
    ]
    assert len(questions) == 5
    for question in questions:
        right = question["choices"][question["answer"]]
        name = question["prompt"].split("(")[0].removeprefix("def ")
        assert name == "method" or f"Return the {name} of" in right
        assert len(set(question["choices"])) == 4
    before = (tmp_path / "docstrings.jsonl").read_text()
    write_task(tmp_path, texts, 5, seed=0)
    assert (tmp_path / "docstrings.jsonl").read_text() == before
    task = yaml.safe_load((tmp_path / "docstrings.yaml").read_text())
    assert task["output_type"] == "multiple_choice"
    assert task["target_delimiter"] == ""
