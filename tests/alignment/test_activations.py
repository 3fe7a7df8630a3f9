"""What blocks compute on a text, against a plain pass over the loaded model."""

import numpy as np
import pytest
import torch

import deepen
import tiny
from deepen.alignment.activations import compare_blocks, read_tokens
from deepen.base.model import open_model
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.transport.correlation import linear_cka

CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(PASSAGE)
    return file


def seen(model, tokens, module):
    """Return what goes into a module of each block, and what each block adds."""
    inputs, added = {}, {}

    def watch(index):
        def block(_module, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            added[index] = (after - before).flatten(0, 1)

        def inside(_module, args):
            inputs[index] = args[0].flatten(0, 1)

        return block, inside

    for index, layer in enumerate(model.model.layers):
        block, inside = watch(index)
        layer.register_forward_hook(block, with_kwargs=True)
        layer.get_submodule(module).register_forward_pre_hook(inside)
    with torch.no_grad():
        model(tokens)
    return inputs, added


def test_neurons_are_correlated_as_numpy_does(any_family, text):
    base = open_model(any_family)
    tokens = read_tokens(base, text, 6, 16)
    assert tokens.shape == (6, 16)
    found = compare_blocks(base, [(1, 2), (2, 3), (0, 5)], tokens, CPU)
    inputs, added = seen(tiny.load(any_family), tokens, "mlp.down_proj")
    for (lower, upper), likeness in found.items():
        expected = np.corrcoef(inputs[lower].T.numpy(), inputs[upper].T.numpy())[:40, 40:]
        ours = likeness.similarity.neurons[""].numpy()
        np.testing.assert_allclose(ours, expected, atol=2e-5)
        assert likeness.cka == pytest.approx(linear_cka(added[lower], added[upper]), abs=1e-4)
        assert likeness.similarity.heads.shape == (4, 4)


def test_a_block_is_most_like_itself(llama, text):
    base = open_model(llama)
    likeness = compare_blocks(base, [(2, 2)], read_tokens(base, text, 4, 16), CPU)[2, 2]
    assert likeness.cka == pytest.approx(1)
    assert torch.allclose(likeness.similarity.neurons[""].diagonal(), torch.ones(40), atol=1e-4)
    assert torch.allclose(likeness.similarity.heads.diagonal(), torch.ones(4), atol=1e-4)


def test_texts_that_will_not_do(llama, tmp_path, text):
    base = open_model(llama)
    with pytest.raises(DeepenError, match="cannot be read"):
        read_tokens(base, tmp_path / "none.txt", 4, 16)
    text.write_text("too short")
    with pytest.raises(DeepenError, match="fewer than one sequence of 16; give a longer one"):
        read_tokens(base, text, 4, 16)


def test_opt_deus_matches_by_what_neurons_compute(llama, text, tmp_path):
    options = {"fidelity": "structured", "cost": "activations", "calibration": str(text)}
    record = deepen.grow(llama, tmp_path / "by-activations", options=options)
    assert record.step.options["calibration"] == "text.txt"
    assert deepen.verify(llama, tmp_path / "by-activations").passed
    deepen.grow(llama, tmp_path / "by-weights", options={"fidelity": "structured"})
    names = [tmp_path / name / "model.safetensors" for name in ("by-activations", "by-weights")]
    assert names[0].read_bytes() != names[1].read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"fidelity": "structured", "cost": "activations"},
        {"fidelity": "structured", "calibration": "x.txt"},
        {"fidelity": "normalised", "solver": "entropic"},
    ],
)
def test_options_that_would_be_ignored_are_refused(llama, tmp_path, options):
    with pytest.raises(DeepenError, match="contradict each other"):
        deepen.grow(llama, tmp_path / "grown", options=options)
    assert not list(tmp_path.iterdir())
