"""What trained is the mean of checkpoints, if that is asked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from deepen.common.errors import DeepenError
from deepen.records.training import TrainRecord
from deepen.training import train
from runs import Make, interrupted

CONSTANT = {"schedule": "constant", "warmup": 0, "save_dtype": "float32"}


def weights(record: TrainRecord) -> dict[str, Tensor]:
    return load_file(Path(record.output) / "model" / "model.safetensors")


def test_it_is_the_mean_of_the_runs_that_end_there(recipe: Make) -> None:
    ends = [
        weights(train(recipe(output=f"{steps}", max_steps=steps, **CONSTANT), "cpt"))
        for steps in (2, 4, 5)
    ]
    settings = CONSTANT | {"max_steps": 5, "average_checkpoints": 3}
    record = train(recipe(**settings), "cpt")
    assert record.averaged_steps == [2, 4, 5]
    card = (Path(record.output) / "model" / "README.md").read_text()
    assert "the mean of those after steps 2, 4, 5" in card
    for name, mean in weights(record).items():
        stacked = torch.stack([end[name] for end in ends]).double()
        assert torch.equal(mean, stacked.mean(0).float()), name


def test_tied_embeddings_stay_tied(recipe: Make, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", tie_word_embeddings=True)
    settings = CONSTANT | {"trains": "everything", "average_checkpoints": 2}
    record = train(recipe(model=base, **settings), "cpt")
    model = tiny.load(Path(record.output) / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    alone = train(
        recipe(model=base, output="alone", **settings | {"average_checkpoints": 1}), "cpt"
    )
    name = "model.embed_tokens.weight"
    assert not torch.equal(weights(record)[name], weights(alone)[name])


def test_a_kill_changes_nothing(recipe: Make) -> None:
    settings = CONSTANT | {"average_checkpoints": 3}
    expected = train(recipe(output="whole", **settings), "cpt")
    record = interrupted(recipe, 5, **settings)
    assert record.averaged_steps == expected.averaged_steps == [2, 4, 6]
    for name, tensor in weights(expected).items():
        assert torch.equal(weights(record)[name], tensor), name


def test_too_few_checkpoints_and_adapters_are_refused(recipe: Make) -> None:
    with pytest.raises(DeepenError, match=r"=4 asks for more .* 6 steps with one every 2 have 3"):
        train(recipe(average_checkpoints=4), "cpt")
    assert not Path(recipe().output).joinpath("recipe.yaml").exists()
    with pytest.raises(ValueError, match="adapters' factors"):
        recipe(average_checkpoints=2, lora={"rank": 2})


def test_a_damaged_one_is_not_averaged(recipe: Make) -> None:
    asked = recipe(average_checkpoints=3)

    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and share >= 1:
            file = Path(asked.output) / "checkpoints" / "checkpoint-2" / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"!")

    with pytest.raises(DeepenError, match="checkpoint-2, which is to be averaged, is damaged"):
        train(asked, "cpt", progress=progress)
    assert not (Path(asked.output) / "model").exists()
