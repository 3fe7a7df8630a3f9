"""Fine-tuning rows: the labels, decoded, are the answers and their ends, whatever the form."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from deepen.common.errors import DeepenError
from deepen.common.progress import Tell, silent, unheard
from deepen.training.data.examples import load_examples
from deepen.training.data.templates import with_template
from deepen.training.recipe import DataConfig

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}</>{% endgeneration %}{% else %}{{ m['content'] }}</>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As templates of reasoning models: what an answer looks like depends on what follows it.
FORGETFUL = (
    "{% for m in messages %}<{{ m['role'] }}>{% if loop.last %}thought: {% endif %}"
    "{{ m['content'] }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "what is a tree"},
    {"role": "assistant", "content": "a tall plant"},
    {"role": "user", "content": "and a bush ü"},
    {"role": "assistant", "content": "a small one ü"},
]


def load(
    folder: Path,
    rows: list[Any],
    template: str | None = None,
    tell: Tell = unheard,
    **data: Any,
) -> Any:
    """Return tokenizer and examples."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    if template is not None:
        (folder / "t.jinja").write_text(template)
        data["chat_template"] = str(folder / "t.jinja")
    settings = {"path": str(file), "sequence_length": 400, "seed": 0} | data
    config, tokenizer = DataConfig.model_validate(settings), tiny.tokenizer()
    with_template(config, tokenizer)
    return tokenizer, load_examples(config, tokenizer, folder / "cache", silent, tell)


def spoken(folder: Path, row: dict[str, Any], template: str | None = None, **data: Any) -> Any:
    """Return the whole of one example's text, and the labelled part of it."""
    tokenizer, examples = load(folder, [row], template, **data)
    ids, labels = examples[0]["input_ids"], examples[0]["labels"]
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    return tokenizer.decode(ids), tokenizer.decode([label for label in labels if label != -100])


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_turn_of_the_assistant_is_an_answer(tmp_path: Path, template: str) -> None:
    whole, answers = spoken(tmp_path, {"messages": TALK}, template)
    assert whole == tiny_render(template, TALK)
    assert answers.replace("\n", "") == "a tall plant</>a small one ü</>"


def tiny_render(template: str, turns: list[dict[str, str]]) -> str:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def test_conversations_and_parts_are_read_as_messages(tmp_path: Path) -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    parts = [
        turn | {"content": [{"type": "text", "text": part} for part in (content[:3], content[3:])]}
        for turn in TALK
        if (content := turn["content"])
    ]
    shared = [{"from": names[turn["role"]], "value": turn["content"]} for turn in TALK]
    said = spoken(tmp_path, {"messages": TALK}, CHATML)
    for row in (
        {"messages": parts},
        {"conversations": shared},
        {"conversations": parts},
        {"conversations": shared[1:], "system": TALK[0]["content"]},
    ):
        assert spoken(tmp_path, row, CHATML) == said


def test_rows_with_null_are_left_out_and_told(tmp_path: Path) -> None:
    heard: list[str] = []
    rows = [{"messages": TALK}, {"messages": None}, {"messages": TALK}]
    _, examples = load(tmp_path, rows, CHATML, tell=heard.append)
    assert len(examples) == 2
    assert [said[:15] for said in heard] == ["Left out 1 rows"]


def test_prompt_and_completion_as_text_and_as_messages(tmp_path: Path) -> None:
    row = {"prompt": "two and two is", "completion": " four"}
    assert spoken(tmp_path, row) == ("two and two is four<eos>", " four<eos>")
    row = {"prompt": TALK[:4], "completion": TALK[4:]}
    whole, answer = spoken(tmp_path, row, CHATML)
    assert whole == tiny_render(CHATML, TALK)
    assert answer == "a small one ü</>\n"


def test_alpaca_with_and_without_input(tmp_path: Path) -> None:
    row = {"instruction": "Add {them}.", "input": "2, 2", "output": "four"}
    whole, answer = spoken(tmp_path, row)
    assert whole.startswith("Below is an instruction that describes a task, paired with an input")
    assert whole.endswith("Add {them}.\n\n### Input:\n2, 2\n\n### Response:\nfour<eos>")
    assert answer == "four<eos>"
    whole, _ = spoken(tmp_path, row | {"input": ""})
    assert whole.endswith("### Instruction:\nAdd {them}.\n\n### Response:\nfour<eos>")


def test_the_loss_can_be_on_everything(tmp_path: Path) -> None:
    for row in ({"text": "plain"}, {"prompt": "a", "completion": "b"}, {"messages": TALK}):
        whole, labelled = spoken(tmp_path, row, CHATML, loss="all")
        assert whole == labelled


def test_long_rows_are_cut_and_those_without_an_answer_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 50, "completion": "y"}, {"prompt": "x", "completion": "y" * 99}]
    _, examples = load(tmp_path, rows, sequence_length=20)
    assert [len(ids) for ids in examples["input_ids"]] == [20]


def test_packed_rows_keep_their_tokens_and_their_borders(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} and", "completion": " more" * (i % 4 + 1)} for i in range(20)]
    _, single = load(tmp_path, rows, sequence_length=32)
    _, packed = load(tmp_path, rows, sequence_length=32, packing=True)
    assert len(packed) < len(single)
    assert max(map(len, packed["input_ids"])) <= 32
    unpacked = [
        tuple(ids[sum(lengths[:k]) : sum(lengths[: k + 1])])
        for ids, lengths in zip(packed["input_ids"], packed["seq_lengths"], strict=True)
        for k in range(len(lengths))
    ]
    assert sorted(unpacked) == sorted(map(tuple, single["input_ids"]))


@pytest.mark.parametrize(
    ("rows", "template", "settings", "said"),
    [
        ([], None, {}, "holds no rows"),
        ([{"messages": TALK}], None, {}, "the tokenizer has no chat template.*data.chat_template"),
        ([{"text": "x"}], None, {}, "set data.loss=all"),
        ([{"question": "x"}], None, {}, "has the columns question; fine-tuning reads"),
        (
            [{"prompt": "x", "completion": "y"}, {"prompt": "x"}],
            None,
            {},
            "Line 2 of rows.jsonl lacks the column 'completion'",
        ),
        ([{"messages": "hello"}], CHATML, {}, "no messages with role and content"),
        (
            [{"messages": TALK}],
            FORGETFUL,
            {},
            "when later ones follow.*{% generation %} marks",
        ),
        ([{"messages": TALK}], "{{ raise_exception('no system') }}", {}, "no system"),
        (
            [{"messages": [{"role": "assistant", "content": None}]}],
            MARKED + "{{ messages[0]['content'] + '' }}",
            {},
            "does not take the turns of line 1",
        ),
        (
            [{"messages": TALK}],
            MARKED + "{% if %}",
            {},
            r"line 1 of rows.jsonl \(.*\); mend the row",
        ),
        ([{"messages": TALK}], MARKED + "{{ messages | no }}", {}, "No filter named 'no'.*; mend"),
        (
            [{"messages": TALK}],
            MARKED + "{{ messages[0].a.b }}",
            {},
            "no attribute 'a'.*; mend the row",
        ),
        (
            [{"messages": TALK}],
            MARKED + "{{ raise_exception('one\ntwo') }}",
            {},
            r"line 1 of rows.jsonl \(one two\); mend the row",
        ),
        (
            [{"prompt": TALK[:4], "completion": TALK[4:]}],
            FORGETFUL,
            {},
            "differently when later ones follow",
        ),
        ([{"conversations": [{"from": "them", "value": "x"}]}], CHATML, {}, "turn from 'them'"),
        ([{"conversations": []}], CHATML, {}, "no messages with role and content"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
            CHATML,
            {},
            "a part of type 'image'",
        ),
        ([{"messages": [{"role": "user", "content": 3}]}], CHATML, {}, "content is a number"),
        ([{}], None, {}, "has no columns at all; fine-tuning reads"),
        ([{"prompt": "x" * 50, "completion": "y"}], None, {"sequence_length": 9}, "No row of"),
        ([{"prompt": "x"}], None, {"format": "alpaca"}, "lacks the column 'instruction'"),
    ],
)
def test_unusable_rows_are_told_and_leave_nothing(
    tmp_path: Path, rows: list[Any], template: str | None, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(DeepenError, match=said) as refused:
        load(tmp_path, rows, template, **settings)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "cache").exists()


def test_a_missing_template_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="'nowhere' cannot be read"):
        with_template(DataConfig(path="p", chat_template="nowhere"), tiny.tokenizer())
