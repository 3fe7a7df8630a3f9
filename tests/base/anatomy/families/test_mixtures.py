"""What mixtures alone have: rules on indices, blocks after the last one, configs to refuse."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deepen
import shrink
from cases import CASES
from deepen.base.anatomy import FAMILIES, REFUSED
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.config import grown_config
from deepen.planning.plan import insert_after


def save(folder: Path, case: str, **settings: object) -> Path:
    model_type, base = CASES[case]
    shrink.model(model_type, **{**base, **settings}).save_pretrained(folder)
    return folder


def grown(family: str, after: list[int], **config: object) -> dict:
    plan = insert_after(6, after, copies=False)
    config = {"num_hidden_layers": 6, **config}
    return grown_config(config, config, FAMILIES[family], plan)


@pytest.mark.parametrize(
    ("step", "dense", "after", "expected"),
    [
        (1, [0, 1], [0, 3], [0, 1, 2]),
        (2, [], [], [0, 2, 4]),
        (2, [3], [2, 2], [0, 2, 3, 4, 5, 6]),
        (3, [5], [1], [0, 1, 2, 4, 5, 6]),
    ],
)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "flint"])
def test_every_nth_block_is_written_out_as_a_list(family, step, dense, after, expected):
    config = grown(family, after, decoder_sparse_step=step, mlp_only_layers=dense)
    assert (config["decoder_sparse_step"], config["mlp_only_layers"]) == (1, expected)


def test_the_count_of_dense_first_blocks_grows_with_them():
    assert grown("deepseek_v3", [0, 3], first_k_dense_replace=2)["first_k_dense_replace"] == 3


def test_ernie_counts_to_the_last_block():
    config = grown(
        "ernie4_5_moe", [0, 4], moe_layer_start_index=2, moe_layer_end_index=5, moe_layer_interval=1
    )
    assert (config["moe_layer_start_index"], config["moe_layer_end_index"]) == (3, -1)


@pytest.mark.parametrize(
    ("case", "settings", "sentence"),
    [
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "in which range of blocks"),
        ("ernie4_5_moe", {"moe_layer_end_index": 4}, "in which range of blocks"),
        ("glm_moe_dsa", {"indexer_types": ["full", "shared"] * 3}, "the indexer of a block below"),
    ],
)
def test_configs_that_cannot_be_right_are_refused(case, settings, sentence, tmp_path):
    base = save(tmp_path / "base", case, **settings)
    with pytest.raises(DeepenError, match=f"cannot be grown: .*{sentence}"):
        deepen.grow(base, tmp_path / "grown")


@pytest.mark.parametrize("family", ["minimax", "longcat_flash", "hy_v4"])
def test_families_that_cannot_be_right_are_refused_with_the_reason(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DeepenError, match=r"does not grow: (its|some of its) ") as error:
        open_model(tmp_path)
    assert REFUSED[family] in str(error.value)


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("deepseek_v3", ("model.layers.6.eh_proj.weight", "model.layers.9.eh_proj.weight")),
        ("hy_v3", ("model.layers.6.enorm.weight", "model.layers.9.enorm.weight")),
        ("ernie4_5_moe", ("model.mtp_block.0.mlp.up_proj.weight",) * 2),
        ("exaone_moe", ("mtp.layers.0.input_layernorm.weight",) * 2),
        ("mimo_v2_flash", ("model.mtp.layers.0.self_attn.q_proj.weight",) * 2),
    ],
)
def test_multi_token_prediction_stays_after_the_last_block(case, extra, tmp_path):
    before, after = extra
    base = save(tmp_path / "base", case, num_nextn_predict_layers=1)
    weights = load_file(base / "model.safetensors") | {before: torch.arange(8.0)}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    deepen.grow(base, tmp_path / "grown")
    tensors = load_file(tmp_path / "grown" / "model.safetensors")
    assert torch.equal(tensors[after], weights[before])
    assert deepen.verify(base, tmp_path / "grown", sequences=1, length=8).passed
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not report["missing_keys"]
