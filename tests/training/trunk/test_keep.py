"""A run that starts above its trunk is the run that does not."""

from pathlib import Path

from deepen.training import train
from runs import Make, losses


def test_losses_and_model_are_those_of_a_run_without(recipe: Make) -> None:
    plain = train(recipe(output="plain", trunk_cache=False), "cpt")
    kept = train(recipe(output="kept", trunk_cache=True), "cpt")
    assert losses(kept) == losses(plain)
    model = Path("model") / "model.safetensors"
    files = [(Path(run.output) / model).read_bytes() for run in (plain, kept)]
    assert files[0] == files[1]
    assert plain.trunk is None
    assert kept.trunk is not None
    assert (kept.trunk.blocks, kept.trunk.sequences, kept.trunk.computed) == (4, 24, 24)
