"""Templates that mark the assistant's turns: TRL's where it ships one, the model's own else."""

from pathlib import Path
from typing import Any

import pytest
import trl

import tiny
from deepen.training.data.chat import IGNORED, Reader
from deepen.training.data.files import Row
from deepen.training.data.templates import marked_template
from deepen.training.recipe import DataConfig

SHIPPED = Path(trl.__file__).parent / "chat_templates"
TRAINED = sorted(
    file.name.removesuffix(".jinja")
    for file in SHIPPED.glob("*.jinja")
    if (SHIPPED / f"{file.stem}_training.jinja").exists()
)
TALK = [
    {"role": "user", "content": "Question one"},
    {"role": "assistant", "content": "Answer one"},
    {"role": "user", "content": "Question two"},
    {"role": "assistant", "content": "Answer two"},
]


def written_with(template: str) -> Any:
    """Return a tokenizer that writes with a template."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "pad_token": "<pad>"})
    tokenizer.chat_template = template
    return tokenizer


def labelled(tokenizer: Any, columns: dict[str, Any]) -> str:
    """Return the part of a row that the loss is taken on."""
    row = Row("a row", columns)
    example = Reader(DataConfig(path="p"), tokenizer, row).read(row)
    assert example is not None
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


@pytest.mark.parametrize("name", TRAINED)
def test_every_template_with_a_training_template_takes_ordinary_rows(name: str) -> None:
    tokenizer = written_with((SHIPPED / f"{name}.jinja").read_text())
    assert marked_template(tokenizer) == (SHIPPED / f"{name}_training.jinja").read_text()
    answers = labelled(tokenizer, {"messages": TALK})
    assert answers.count("Answer one") == answers.count("Answer two") == 1
    assert "Question" not in answers
    row = {"prompt": TALK[:3], "completion": TALK[3:]}
    completion = labelled(tokenizer, row)
    assert "Answer two" in completion
    assert "one" not in completion
    assert "Question" not in completion


@pytest.mark.skipif(not SHIPPED.exists(), reason=f"TRL {trl.__version__} has them elsewhere")
def test_a_template_of_several_is_the_default_one() -> None:
    plain = (SHIPPED / "qwen3.jinja").read_text()
    tokenizer = written_with(plain)
    tokenizer.chat_template = {"default": plain, "tool_use": "{{ raise_exception('no') }}"}
    row = {"messages": TALK}
    assert labelled(tokenizer, row) == labelled(written_with(plain), row)


def test_marks_of_the_model_come_first() -> None:
    own = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert marked_template(written_with(own)) == own
    assert marked_template(written_with("{{ messages[0].content }}")) is None
