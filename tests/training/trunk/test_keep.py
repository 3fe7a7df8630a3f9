"""A run that starts above its trunk is the run that does not, to the last bit."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import deepen
import shrink
import tiny
from cases import CASES
from deepen.common.errors import DeepenError
from deepen.records.training import TrainRecord, TrunkRecord
from deepen.training import train
from runs import Interrupted, Make, interrupted, losses

PASSES = {"max_steps": 26, "save_every": 10}
"""104 sequences of 99: a second pass begins."""


def kept(record: TrainRecord) -> TrunkRecord:
    """Return what a run says of its trunk."""
    assert record.trunk is not None
    return record.trunk


def weights(record: TrainRecord) -> bytes:
    """Return the trained model's tensors."""
    return (Path(record.output) / "model" / "model.safetensors").read_bytes()


def same(one: TrainRecord, other: TrainRecord) -> bool:
    """Whether two runs have the same losses and the same model, to the last bit."""
    return losses(one) == losses(other) and weights(one) == weights(other)


@pytest.mark.parametrize(
    "settings",
    [
        PASSES,
        {"micro_batch_size": 1},
        {"precision": "bfloat16"},
        {"activation_checkpointing": True},
        {"also": ["norm", "head"], "trains": []},
    ],
    ids=str,
)
def test_losses_and_model_are_those_of_a_run_without(
    recipe: Make, settings: dict[str, Any]
) -> None:
    plain = train(recipe(output="plain", trunk_cache=False, **settings), "cpt")
    record = train(recipe(output="kept", trunk_cache=True, **settings), "cpt")
    assert same(plain, record)
    assert plain.trunk is None
    trunk, sequences = kept(record), min(99, 4 * record.steps)
    assert trunk.blocks == (8 if "also" in settings else 4)
    assert (trunk.sequences, trunk.computed) == (sequences, sequences)
    width = 2 if record.precision == "bfloat16" else 4
    assert trunk.stored_bytes == sequences * 32 * 24 * width
    assert not (Path(record.output) / "data").exists()


def grown_of(folder: Path, name: str) -> Path:
    """Save and grow a tiny model of a family, in bfloat16."""
    model_type, settings = CASES[name]
    shrink.model(model_type, **settings).to(torch.bfloat16).save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    deepen.grow(folder / "base", folder / "grown", new_layers=2)
    return folder / "grown"


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_families(recipe: Make, tmp_path: Path, name: str) -> None:
    model = grown_of(tmp_path, name)
    plain = train(recipe(model=model, output="plain", trunk_cache=False), "cpt")
    record = train(recipe(model=model, trunk_cache=True), "cpt")
    assert same(plain, record)
    assert kept(record).blocks == 4


def test_where_states_are_not_enough_every_block_is_run(recipe: Make, tmp_path: Path) -> None:
    model, why = grown_of(tmp_path, "gpt2"), "it is another one in every pass, as with dropout"
    insisting = recipe(model=model, trunk_cache=True)
    with pytest.raises(DeepenError, match=rf"cannot be true for grown: {why}; leave it out"):
        train(insisting, "cpt")
    assert not list(Path(insisting.output).rglob("*.states"))
    assert not Path(insisting.output, "recipe.yaml").exists()
    told: list[str] = []
    shared = {"cache": str(tmp_path / "shared")}
    record = train(recipe(shared, model=model), "cpt", tell=told.append)
    assert record.trunk is None
    assert told[-1] == f"The output of the blocks below block 4 is not kept: {why}."
    plain = train(recipe(model=model, output="plain", trunk_cache=False), "cpt")
    assert same(plain, record)


def test_other_runs_find_the_states(recipe: Make, llama: Path, tmp_path: Path) -> None:
    shared = {"cache": str(tmp_path / "shared")}
    other = tmp_path / "other"
    deepen.grow(llama, other, new_layers=2, method="random")
    first = train(recipe(shared, "first"), "cpt")
    assert kept(first).computed == 24
    again = train(recipe(shared, "again", other), "cpt")
    assert kept(again).computed == 0
    plain = train(recipe(output="plain", model=other, trunk_cache=False), "cpt")
    assert same(again, plain)
    # Another seed draws other sequences, some of them known.
    seeded = train(recipe(shared | {"seed": 1}, "seeded"), "cpt")
    assert 0 < kept(seeded).computed < 24
    assert same(seeded, train(recipe({"seed": 1}, "plain-1", trunk_cache=False), "cpt"))
    assert len(list((tmp_path / "shared").glob("*.states"))) == 1
    # The base's own blocks, trained from the same block on, have the same trunk.
    top = train(recipe(shared, "top", llama, trains=[4, 5]), "cpt")
    assert kept(top).computed == 0


def test_each_source_of_a_mixture_has_its_own_states(
    recipe: Make, corpus: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.txt"
    old.write_text(corpus.read_text()[::-1])
    shared = {"cache": str(tmp_path / "shared")}
    mixed = {"mix": [{"path": str(old), "share": 0.5}]}
    first = train(recipe(shared, "alone"), "cpt")
    record = train(recipe(shared | mixed, "mixed"), "cpt")
    assert (kept(first).computed, kept(record).computed) == (24, 12)
    assert same(record, train(recipe(mixed, "plain", trunk_cache=False), "cpt"))


def test_a_killed_run_goes_on_above_its_trunk(recipe: Make) -> None:
    expected = train(recipe(output="whole", trunk_cache=False), "cpt")
    record = interrupted(recipe, 5, trunk_cache=True)
    assert record.resumed_from_step == 4
    assert kept(record).computed == 0
    assert same(record, expected)


def test_a_run_killed_before_its_states_are_all_there_computes_the_rest(recipe: Make) -> None:
    def progress(stage: str, share: float) -> None:
        if stage.startswith("trunk") and share >= 0.5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(trunk_cache=True), "cpt", progress=progress)
    record = train(recipe(trunk_cache=True), "cpt")
    assert kept(record).computed == 12
    assert same(record, train(recipe(output="whole", trunk_cache=False), "cpt"))


def test_a_disk_that_fills_up_ends_no_run(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.pwrite, [15]

    def full(descriptor: int, contents: Any, place: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, contents, place)

    monkeypatch.setattr(os, "pwrite", full)
    told: list[str] = []
    record = train(recipe(trunk_cache=True, keep_checkpoints=True), "cpt", tell=told.append)
    assert "is not kept: its file cannot be written (No space left on device)." in told[-1]
    assert record.trunk is None
    assert not list(Path(record.output).rglob("*.states"))
    assert same(record, train(recipe(output="plain", trunk_cache=False), "cpt"))


def test_a_disk_without_room_is_left_alone(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # 24 states of 3072 bytes, and a checkpoint: more than a fifth of what is free.
    free = shutil._ntuple_diskusage(10**9, 10**9, 300_000 + 2**28)
    monkeypatch.setattr("deepen.training.trunk.wanted.shutil.disk_usage", lambda path: free)
    monkeypatch.setattr("deepen.training.trunk.wanted._MOST_SHARE_OF_DISK", 1e-5)
    told: list[str] = []
    record = train(recipe(**PASSES), "cpt", tell=told.append)
    assert record.trunk is None
    assert "it needs 0.00 GB, and the disk of" in told[-1]
    assert train(recipe(output="b", trunk_cache=True), "cpt").trunk is not None


def test_states_of_other_rounding_are_not_used(recipe: Make, tmp_path: Path) -> None:
    from deepen.training.trunk.states import States

    shared = {"cache": str(tmp_path / "shared")}
    train(recipe(shared, "first"), "cpt")
    (file,) = (tmp_path / "shared").glob("*.states")
    states = States(file, 99, (32, 24), torch.float32)
    for index in filter(states.holds, range(99)):
        states.write(index, states.read(index) * (1 + 1e-6))
    told: list[str] = []
    record = train(recipe(shared, "second"), "cpt", tell=told.append)
    assert record.trunk is None
    assert told[-1].endswith("what an earlier run kept was computed with other rounding.")
