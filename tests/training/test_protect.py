"""Old text is left alone: the directions of its inputs, layer by layer, whatever trains."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import shrink
import tiny
from cases import CASES
from deepen.common.errors import DeepenError
from deepen.growth.grow import grow
from deepen.records.training import TrainRecord
from deepen.training import train
from deepen.training.protect import main_directions, put_back
from runs import Make, interrupted

OLD = "The water remembers the bends. Ask for them back, stone by stone, and stream by stream. " * 9


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 200 tokens of text to protect."""
    file = tmp_path_factory.mktemp("old") / "old.txt"
    file.write_text(OLD, encoding="utf-8")
    return file


def base_of(folder: Path, family: str) -> Path:
    """Save a tiny checkpoint of the survey."""
    model_type, settings = CASES[family]
    shrink.model(model_type, **settings).to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_main_directions_are_the_fewest_that_hold_the_share(rank: int) -> None:
    seen = seeded(40, rank) @ seeded(rank, 8)
    moment = seen.T @ seen
    values = torch.linalg.eigvalsh(moment).flip(0)
    for share in (0.5, 0.9, 0.999):
        found = main_directions(moment, share)
        k = found.shape[1]
        assert torch.allclose(found.T @ found, torch.eye(k), atol=1e-5)
        held = (seen @ found).square().sum() / seen.square().sum()
        assert held >= share - 1e-5
        assert values[: k - 1].sum() / values.sum() < share
        assert k <= rank


def test_what_was_never_seen_has_no_direction() -> None:
    assert main_directions(torch.zeros(4, 4), 0.9).shape == (4, 0)


def test_a_layer_is_put_back_in_the_directions_and_nowhere_else() -> None:
    directions = torch.linalg.qr(seeded(6, 2))[0]
    start, update = seeded(3, 6), seeded(6, 3).T
    weight = start + update
    put_back(weight, directions, start @ directions)
    rest = torch.eye(6) - directions @ directions.T
    assert torch.allclose(weight, start + update @ rest, atol=1e-6)
    once = weight.clone()
    put_back(weight, directions, start @ directions)
    assert torch.allclose(weight, once, atol=1e-6)


@contextmanager
def inputs_of(module: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what every linear layer is given."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    yield seen
    for handle in handles:
        handle.remove()


def tokens_of(text: str, length: int = 32) -> Tensor:
    ids = tiny.tokenizer()(text)["input_ids"]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def run(recipe: Make, output: str, **settings: Any) -> TrainRecord:
    return train(recipe(output=output, save_dtype="float32", weight_decay=0.1, **settings), "cpt")


OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")
ALL = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))


@pytest.mark.parametrize(
    ("what", "blocks", "layers"),
    [
        ({}, (4, 6), OUTPUTS),
        ({"trains": [6, 7]}, (7,), ALL),
        ({"trains": "everything"}, (0, 1, 7), ALL),
        ({"lora": {"rank": 4}}, range(8), ALL),
        ({"neurons": 8}, range(8), ("mlp.down_proj",)),
    ],
    ids=str,
)
def test_no_update_touches_the_directions_of_old_text(
    recipe: Make,
    grown: Path,
    old: Path,
    tmp_path: Path,
    what: dict[str, Any],
    blocks: Sequence[int],
    layers: Sequence[str],
) -> None:
    record = run(recipe, "run", protect={"path": str(old), "share": 0.8, "max_tokens": 64}, **what)
    assert record.protect is not None
    assert record.protect.tokens == 64
    assert record.protect.flops > 64 * 2 * record.parameters / 2
    assert 0 < record.protect.directions < 1

    # What layers read of the old text, by other means.
    module = tiny.load(grown)
    with inputs_of(module) as seen, torch.no_grad():
        tokens = tokens_of(OLD)
        module(tokens[torch.linspace(0, len(tokens) - 1, 2).long()])
    start = module.state_dict()
    end = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name in (f"model.layers.{block}.{layer}" for block in blocks for layer in layers):
        read, update = torch.cat(seen[name]), end[f"{name}.weight"] - start[f"{name}.weight"]
        if "neurons" in what:
            assert not update[:, :-8].any()
            read, update = read[:, -8:], update[:, -8:]
        directions = main_directions(read.T @ read, 0.8)
        assert update.abs().max() > 1e-3
        assert (update @ directions).abs().max() < 1e-3 * update.abs().max()


def test_new_blocks_learn_inside_as_they_like(
    recipe: Make, grown: Path, old: Path, tmp_path: Path
) -> None:
    record = run(recipe, "run", protect={"path": str(old)})
    assert record.protect is not None
    assert record.protect.layers == 4
    start = tiny.load(grown).state_dict()
    end = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not torch.equal(*(m["model.layers.4.mlp.up_proj.weight"] for m in (start, end)))


def test_a_new_block_that_writes_already_is_protected_whole(
    recipe: Make, grown: Path, old: Path, tmp_path: Path
) -> None:
    asked = {"path": str(old), "max_tokens": 64}
    run(recipe, "first", protect=asked)
    again = run(recipe, "second", model=tmp_path / "first" / "model", protect=asked)
    assert again.protect is not None
    assert again.protect.layers == 2 * len(ALL)


def test_transposed_layers_are_protected_too(recipe: Make, old: Path, tmp_path: Path) -> None:
    base, model = base_of(tmp_path / "gpt2", "gpt2"), tmp_path / "grown"
    grow(base, model, method="llama-pro", new_layers=1)
    asked = {"path": str(old), "share": 0.9, "max_tokens": 64}
    record = run(recipe, "run", model=model, protect=asked)
    assert record.protect is not None
    assert record.protect.layers == 2


def test_an_interrupted_run_ends_in_the_same_weights(recipe: Make, old: Path) -> None:
    asked: dict[str, Any] = {"path": str(old), "max_tokens": 64}
    whole = train(recipe(output="whole", protect=asked), "cpt")
    broken = interrupted(recipe, 4, protect=asked)
    assert broken.resumed_from_step
    one, other = (
        load_file(Path(r.output) / "model" / "model.safetensors") for r in (whole, broken)
    )
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_what_cannot_be_protected_is_refused(recipe: Make, old: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match=r"no file .*gone\.txt"):
        train(recipe(protect={"path": str(tmp_path / "gone.txt")}), "cpt")
    short = tmp_path / "short.txt"
    short.write_text("A word.")
    with pytest.raises(DeepenError, match="fewer than one sequence"):
        train(recipe(protect={"path": str(short)}), "cpt")
    base, model = base_of(tmp_path / "moe", "mixtral"), tmp_path / "grown"
    grow(base, model, method="llama-pro", new_layers=1)
    with pytest.raises(DeepenError, match=r"no linear layers, which .*training\.protect need"):
        train(recipe(model=model, protect={"path": str(old)}), "cpt")
    base, model = base_of(tmp_path / "post-norm", "gemma3_text"), tmp_path / "grown-post-norm"
    grow(base, model, method="llama-pro", new_layers=1)
    with pytest.raises(DeepenError, match=r"writes through norms"):
        train(recipe(model=model, protect={"path": str(old)}), "cpt")
    assert not (tmp_path / "run" / "model").exists()
