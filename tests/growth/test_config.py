"""Per-layer fields of config.json stay true."""

import pytest

from deepen.base.anatomy import FAMILIES
from deepen.common.errors import DeepenError
from deepen.growth.config import grown_config
from deepen.planning.plan import insert_after

TYPES = ["full", "full", "sliding", "sliding"]


def grown(config, after, resolved=None, family="qwen2"):
    plan = insert_after(4, after, copies=False)
    return grown_config(config, resolved or {}, FAMILIES[family], plan)


def test_lists_with_an_entry_per_block_follow_the_parents():
    config = {
        "num_hidden_layers": 4,
        "layer_types": TYPES,
        "max_window_layers": 2,
        "kept": {"a": 1},
    }
    assert grown(config, [0, 1, 2, 2]) == {
        "num_hidden_layers": 8,
        "layer_types": ["full", "full", "full", "full", *["sliding"] * 4],
        "max_window_layers": 4,
        "kept": {"a": 1},
    }


def test_a_list_that_the_file_leaves_out_is_written_out():
    config = {"num_hidden_layers": 4}
    assert grown(config, [0], {"layer_types": TYPES})["layer_types"] == ["full", *TYPES]


@pytest.mark.parametrize(
    ("count", "after", "expected"), [(4, [3 - 1], 5), (28, [0, 1], 30), (0, [0], 0)]
)
def test_prefix_counts(count, after, expected):
    assert grown({"max_window_layers": count}, after)["max_window_layers"] == expected


def test_a_lineage_with_an_entry_per_block_is_none_of_the_model_s():
    lineage = {"new_blocks": [0, 1, 2, 3], "trainings": [{}, {}, {}, {}]}
    assert grown({"deepen": lineage}, [0], family="llama")["deepen"] == lineage


def test_an_unknown_list_of_the_same_length_is_refused():
    with pytest.raises(DeepenError, match="list 'rope_layers' with one entry per block"):
        grown({"rope_layers": [1, 0, 1, 0]}, [0], family="llama")
    assert grown({"eos_token_id": [1, 2, 3, 4]}, [0], family="llama")["eos_token_id"] == [
        1,
        2,
        3,
        4,
    ]


def test_a_list_of_wrong_length_is_refused():
    with pytest.raises(DeepenError, match="3 entries in 'layer_types' for 4 blocks"):
        grown({"layer_types": TYPES[:3]}, [0])


def test_modules_named_by_block_are_counted_anew():
    listed = [
        "lm_head",
        "model.layers.1.mlp.gate",
        "model.layers.1",
        "layers.3.self_attn",
        "model.layers.4.eh_proj",
        "mlp.gate",
        "re:.*norm",
    ]
    entry = {"quant_method": "fp8", "weight_block_size": [128, 128], "ignored_layers": listed}
    made = grown({"quantization_config": entry}, [1, 2], family="llama")["quantization_config"]
    assert made == {
        **entry,
        "ignored_layers": [
            "lm_head",
            *("model.layers.1.mlp.gate", "model.layers.2.mlp.gate"),
            *("model.layers.1", "model.layers.2"),
            "layers.5.self_attn",
            "model.layers.6.eh_proj",
            "mlp.gate",
            "re:.*norm",
        ],
    }


@pytest.mark.parametrize("entry", [r"re:.*layers\.[01]\..*", "1.mlp.up_proj"])
def test_patterns_that_tell_blocks_apart_are_refused(entry):
    config = {"quantization_config": {"ignore": ["lm_head", entry]}}
    with pytest.raises(DeepenError, match="tells blocks apart by a pattern"):
        grown(config, [1], family="llama")
