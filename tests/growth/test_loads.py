"""What transformers would refuse to load is refused before the first byte, and nothing else is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import tiny
from deepen.common.errors import DeepenError
from deepen.common.quiet import quiet_transformers

CHANGED = {
    "vocab_size": [319, 321, 0],
    "hidden_size": [16, 32],
    "intermediate_size": [39, 80],
    "num_attention_heads": [1, 3, 8, 0],
    "num_key_value_heads": [1, 4, 3],
    "head_dim": [3, 12],
    "pad_token_id": [-1, 0, 319, 320, 100000],
    "bos_token_id": [100000],
    "hidden_act": ["no such function"],
    "max_position_embeddings": [8],
    "rope_parameters": [{"rope_type": "no such type", "rope_theta": 1.0}],
    "attention_bias": [True],
    "mlp_bias": [True],
    "dtype": ["no such type"],
    "rms_norm_eps": ["small"],
    "tie_word_embeddings": [True],
}
CASES = [(field, value) for field, values in CHANGED.items() for value in values]


def edited(base: Path, out: Path, **changes) -> Path:
    """Copy a checkpoint with other fields in its config."""
    shutil.copytree(base, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    return out


def loads(folder: Path) -> bool:
    """Whether transformers loads a checkpoint, with no tensor made up and none left out."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    except Exception:
        return False
    # A stored head that the config ties is told of nowhere, and left out.
    return not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize(("field", "value"), CASES)
def test_grow_and_plan_refuse_what_transformers_does_not_load(llama, tmp_path, field, value):
    base, out = edited(llama, tmp_path / "base", **{field: value}), tmp_path / "grown"
    how = {"method": "llama-pro", "new_layers": 1}
    if loads(base):
        deepen.plan(base, **how)
        deepen.grow(base, out, **how)
        assert loads(out)
        return
    for call in (lambda: deepen.plan(base, **how), lambda: deepen.grow(base, out, **how)):
        with pytest.raises(DeepenError) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [base]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"vocab_size": 321},
            r"'model.embed_tokens.weight' is \[320, 24\] in the checkpoint and \[321, 24\] in the "
            r"model that config.json describes \(vocab_size\); correct",
        ),
        (
            {"intermediate_size": 39},
            r"proj.weight' is .* describes \(intermediate_size\); correct",
        ),
        ({"pad_token_id": 320}, "transformers cannot build base as its config.json describes it"),
        ({"mlp_bias": True}, "lacks tensor 'model.layers.0.mlp.*bias'.* would make it up"),
    ],
)
def test_the_sentence_names_what_contradicts(llama, tmp_path, changes, sentence):
    base = edited(llama, tmp_path / "base", **changes)
    for call in (deepen.plan, lambda base: deepen.grow(base, tmp_path / "out")):
        with pytest.raises(DeepenError, match=sentence):
            call(base)


def test_a_tensor_that_transformers_would_leave_out_is_named(tmp_path):
    base = tiny.save(tmp_path / "base", "llama-biased")
    base = edited(base, tmp_path / "edited", attention_bias=False)
    with pytest.raises(DeepenError, match=r"has tensor 'model.layers.0.self_attn.*would leave it"):
        deepen.grow(base, tmp_path / "grown")


def test_verify_and_measuring_say_it_in_one_sentence_too(llama, tmp_path):
    deepen.grow(llama, tmp_path / "grown", method="llama-pro")
    for folder in ("base", "grown"):
        file = (llama if folder == "base" else tmp_path / "grown") / "config.json"
        config = json.loads(file.read_text()) | {"pad_token_id": 320}
        (tmp_path / f"{folder}.json").write_text(json.dumps(config))
    base = edited(llama, tmp_path / "base")
    for folder in ("base", "grown"):
        shutil.copy(tmp_path / f"{folder}.json", tmp_path / folder / "config.json")
    for call in (
        lambda: deepen.verify(base, tmp_path / "grown"),
        lambda: deepen.inspect(base, alignment=True),
        lambda: deepen.plan(base, placement="quality"),
        lambda: deepen.evaluate(base, perplexity=[base / "LICENSE"]),
    ):
        with pytest.raises(DeepenError, match=r"transformers cannot (build|load) (base|grown)"):
            call()


def test_experts_are_compared_too(tmp_path):
    """In memory they are one tensor; a wrong size shows when they are put together."""
    import shrink

    shrink.model("mixtral").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    assert deepen.plan(tmp_path / "base", new_layers=1).growth.depth == 7
    stored = load_file(tmp_path / "base/model.safetensors")
    for field, value in (("intermediate_size", 40), ("num_local_experts", 3)):
        base = edited(tmp_path / "base", tmp_path / field, **{field: value})
        assert not loads(base)
        with pytest.raises(DeepenError, match=r"would not load|would leave it out|lacks tensor"):
            deepen.plan(base, new_layers=1)
    save_file(stored, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
