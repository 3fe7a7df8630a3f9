"""What ``inspect --peft`` prints: peft, given exactly that, adapts the new blocks and no others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

import deepen
import shrink
import tiny
from cases import CASES
from deepen import cli
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.common.errors import DeepenError
from deepen.verification.adapters import adapter_targets, new_block_targets

# Dense, Conv1D, fused projections, experts in one tensor beside shared and dense ones, a router
# that is a linear layer, weights that are read without calling, and Mamba mixers.
FAMILIES = ["llama", "gpt2", "phi3", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "jetmoe"]
FAMILIES += ["jamba"]
# peft asks transformers in words that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def adapted(module: Any, pattern: str) -> set[int]:
    """Return the blocks that have adapters; nothing outside of them may."""
    names = [
        name.partition(f".{pattern}.") for name, p in module.named_parameters() if p.requires_grad
    ]
    assert names
    assert all("lora_" in inside for _, _, inside in names)
    return {int(inside.partition(".")[0]) for _, _, inside in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapts_new_blocks_alone(family: str) -> None:
    model_type, settings = CASES.get(family, (family, {}))
    module: Any = deepen.grow_model(
        shrink.model(model_type, **settings), method="llama-pro", new_layers=2
    ).train()
    model = as_model(ModuleSource(module, module.config.to_dict()))
    targets = new_block_targets(model)
    tokens = torch.arange(16).reshape(2, 8) + 3
    before = module.eval()(tokens).logits
    wrapped: Any = get_peft_model(module, LoraConfig(**targets.model_dump()))
    assert adapted(wrapped, targets.layers_pattern) == set(module.config.deepen["new_blocks"])
    after = wrapped(tokens, labels=tokens)
    torch.testing.assert_close(after.logits, before, rtol=1e-5, atol=1e-5)
    after.loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_what_is_printed_can_be_pasted(llama: Path, tmp_path: Path, capsys: Any) -> None:
    new = deepen.grow(llama, tmp_path / "grown", new_layers=2).step.new_blocks
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path / "grown"), "--peft"])
    given = eval(capsys.readouterr().out, {"LoraConfig": LoraConfig})
    model: Any = get_peft_model(tiny.load(tmp_path / "grown", torch.bfloat16), given)
    assert adapted(model, "layers") == {*new}
    # As an adapter that was trained goes on: saved, loaded, merged, verified.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype="auto")
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    record = deepen.verify(llama, tmp_path / "merged", trained=True)
    assert record.passed, record.checks


def test_every_linear_layer_is_named_once(llama: Path) -> None:
    targets = adapter_targets(open_model(llama), [3, 1])
    layers = {
        n
        for n, m in tiny.load(llama).model.layers[1].named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    assert set(targets.target_modules) == layers
    assert len(targets.target_modules) == len(layers)
    assert targets.target_parameters == []
    assert targets.layers_to_transform == [1, 3]
    assert targets.layers_pattern == "layers"
    assert not targets.fan_in_fan_out


def test_a_model_that_was_not_grown_is_refused(llama: Path) -> None:
    with pytest.raises(DeepenError, match="was not grown by deepen"):
        deepen.inspect(llama, peft=True)
