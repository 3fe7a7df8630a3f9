"""What is no decoder of a known family is turned away with one sentence that says what to do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

import deepen
import shrink
from deepen.base.model import open_model
from deepen.common.errors import DeepenError

IDS = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(0))
EYE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
VISION_LANGUAGE = {
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "llava": ("llama", "clip_vision_model"),
}


def vision_language(model_type: str) -> PreTrainedConfig:
    """Return the config of a tiny model that reads images and text."""
    text, eye = VISION_LANGUAGE[model_type]
    fields = {k: v for k, v in EYE.items() if hasattr(CONFIG_MAPPING[eye](), k)}
    return CONFIG_MAPPING[model_type](
        text_config=shrink.config(text, bos_token_id=1).to_dict(),
        vision_config={"model_type": eye, **fields},
        image_token_index=shrink.VOCABULARY - 1,
    )


def refusal(folder: Path, config: dict[str, Any]) -> str:
    """Return what deepen says to a checkpoint, whose weights do not matter."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(DeepenError) as caught:
        open_model(folder)
    sentence = str(caught.value)
    assert re.fullmatch(rf"{folder.name} [^\n]*\.", sentence)
    assert ". " not in sentence
    return sentence


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma4", "images too; save its text model as a checkpoint .*'gemma4_text'"),
        (
            "deepseek_vl",
            "a vision-language model; .* a checkpoint of its own, of family 'llama'",
        ),
        ("glm4v", "a vision-language model, and deepen does not grow its text model 'glm4v_text'"),
        ("mllama", "grows decoders of text alone"),
    ],
)
def test_models_that_read_images(model_type, reason, tmp_path):
    assert re.search(reason, refusal(tmp_path, CONFIG_MAPPING[model_type]().to_dict()))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("t5", "is an encoder-decoder model; deepen grows decoders alone"),
        ("bart", "encoder-decoder model; deepen grows decoders that stand alone"),
        ("bert", "is a bidirectional encoder"),
        ("gemma3n_text", "mix four streams by AltUp"),
        ("gemma4_assistant", "use the keys and values of another model"),
        ("no_such_family", "docs/architectures.md lists"),
    ],
)
def test_models_that_are_no_decoders_of_their_own(model_type, reason, tmp_path):
    known = model_type in CONFIG_MAPPING and model_type != "gemma4_assistant"
    config = CONFIG_MAPPING[model_type]().to_dict() if known else {"model_type": model_type}
    assert re.search(reason, refusal(tmp_path, config))


@pytest.mark.parametrize("model_type", ["gemma3", "llava"])
def test_the_text_model_of_a_vision_language_model_can_be_grown(model_type, tmp_path):
    whole = AutoModelForImageTextToText.from_config(vision_language(model_type)).eval()
    with torch.no_grad():
        expected = whole(input_ids=IDS, use_cache=False).logits
    # As docs/architectures.md shows it.
    text = AutoModelForCausalLM.from_config(whole.config.get_text_config(), dtype=whole.dtype)
    text.model, text.lm_head = whole.model.language_model, whole.lm_head
    text.save_pretrained(tmp_path / "text")

    deepen.grow(tmp_path / "text", tmp_path / "grown")
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").eval()
    with torch.no_grad():
        assert torch.equal(grown(IDS, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 8}, "belongs to block"),
        ({"plan": [0, 1, 2]}, "tells of 3 blocks, and there are 9"),
        ({"blocks": [99]}, "tells of 100 blocks|blocks that there were not"),
    ],
)
def test_an_entry_that_tells_of_other_blocks_is_refused(llama, tmp_path, changes, sentence):
    out = tmp_path / "grown"
    deepen.grow(llama, out, method="llama-pro", new_layers=3)
    config = json.loads((out / "config.json").read_text())
    entry = config["deepen"]
    if "plan" in changes:
        entry["steps"][0] |= {"plan": changes["plan"], "new_blocks": []}
        entry["new_blocks"] = []
    elif "blocks" in changes:
        entry["trainings"] = [{"stage": "cpt", "after_steps": 1, "blocks": changes["blocks"]}]
    else:
        config |= changes
    (out / "config.json").write_text(json.dumps(config))
    for use in (open_model, deepen.inspect, lambda folder: deepen.plan(folder, new_layers=1)):
        with pytest.raises(DeepenError, match=sentence):
            use(out)


def test_a_family_that_transformers_does_not_know_yet_needs_another_transformers(
    llama, monkeypatch
):
    monkeypatch.delitem(CONFIG_MAPPING._mapping, "llama")
    with pytest.raises(DeepenError, match=r"does not know the model_type of .* update it"):
        open_model(llama)
