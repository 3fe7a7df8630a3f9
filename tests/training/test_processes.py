"""Two processes, really launched, with DDP and with FSDP2: the losses of one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file

import tiny
from deepen.common.settings import write_yaml
from deepen.records.training import TrainRecord
from deepen.training import train
from runs import Make, losses

RATES = {"output_rate_factor": 2.0, "block_rate_decay": 0.7, "output_lead": 2}
FSDP = Path(__file__).parents[2] / "examples" / "accelerate" / "fsdp2-cpu.yaml"
RUN = """
import os, signal, sys
from accelerate.state import AcceleratorState
from transformers import TrainerCallback
from deepen.training import load_recipe, train

def progress(stage, share):
    if os.environ.get("KILL") and stage.startswith("cpt") and share >= 5 / 6:
        os.kill(os.getpid(), signal.SIGKILL)

class Asks(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3 and os.environ["RANK"] == "1":
            control.should_save = True
    def on_save(self, args, state, control, **_):
        sys.stdout.write(f"saved after step {state.global_step}\\n")

asked = load_recipe(sys.argv[1], sys.argv[2:])
train(asked, "cpt", callbacks=[Asks()], tell=print, progress=progress)
sys.stdout.write(f"ran as {AcceleratorState().distributed_type.value}\\n")
"""
LAUNCHERS = {
    "MULTI_CPU": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"],
    "FSDP": [
        *("accelerate.commands.launch", "--config_file", str(FSDP)),
        *("--main_process_port", "29612"),
    ],
}


def launch(kind: str, folder: Path, *options: str, kill: bool = False) -> str:
    """Run the recipe in two processes; return what they print."""
    command = [sys.executable, "-m", *LAUNCHERS[kind], *options, str(folder / "go.py")]
    ended = subprocess.run(
        [*command, str(folder / "recipe.yaml")],
        env=os.environ | {"KILL": "1" if kill else ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ended.returncode != 0) == kill, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("MULTI_CPU", {}),
        ("FSDP", {}),
        pytest.param("FSDP", RATES, marks=pytest.mark.slow),
        *(
            pytest.param(kind, settings, marks=pytest.mark.slow)
            for kind in ("MULTI_CPU", "FSDP")
            for settings in ({"lora": {"rank": 2}}, {"neurons": 5})
        ),
        pytest.param("MULTI_CPU", {"trunk_cache": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_train_as_one(
    recipe: Make, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    asked = recipe(batch_size=8, **settings)
    write_yaml(tmp_path / "recipe.yaml", asked.model_dump(mode="json"))
    (tmp_path / "go.py").write_text(RUN)
    printed = launch(kind, tmp_path)
    assert printed.count(f"ran as {kind}") == 2
    assert printed.count("Training ") == 1  # the first process speaks for all
    # What a callback asks for in one process is done in both; they would wait for each other.
    assert printed.count("saved after step 3") == 2

    one = train(recipe(batch_size=8, output="one", **settings), "cpt")
    folder = Path(asked.output)
    two = TrainRecord.model_validate_json((folder / "record.json").read_text())
    assert (two.processes, one.processes) == (2, 1)
    assert two.tokens == one.tokens
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert two.trunk == (one.trunk and one.trunk.model_copy(update={"seconds": ANY}))

    # The trained model reloads, and is the one that one process trains.
    assert tiny.load(folder / "model").config.num_hidden_layers == 8
    ours, theirs = (load_file(Path(r.output) / "model" / "model.safetensors") for r in (two, one))
    for name, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[name].float(), rtol=0.02, atol=2e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("stored", [None, "FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_killed_processes_go_on(recipe: Make, tmp_path: Path, stored: str | None) -> None:
    kind = "FSDP" if stored else "MULTI_CPU"
    options = ["--fsdp_state_dict_type", stored] if stored else []
    runs = []
    for name, kill in (("killed", True), ("whole", False)):
        asked = recipe(output=name)
        write_yaml(tmp_path / "recipe.yaml", asked.model_dump(mode="json"))
        (tmp_path / "go.py").write_text(RUN)
        if kill:
            launch(kind, tmp_path, *options, kill=True)
            saved = list((Path(asked.output) / "checkpoints" / "checkpoint-4").iterdir())
            assert any(p.is_dir() for p in saved) == (stored == "SHARDED_STATE_DICT")
        launch(kind, tmp_path, *options)
        record = (Path(asked.output) / "record.json").read_text()
        runs.append(TrainRecord.model_validate_json(record))
    assert [run.resumed_from_step for run in runs] == [4, None]
    assert losses(runs[0]) == losses(runs[1])


@pytest.mark.slow
def test_two_processes_go_from_phase_to_phase_over_a_kill(recipe: Make, tmp_path: Path) -> None:
    phases = [{"steps": 0.5}, {"trains": "everything", "learning_rate": 1e-3}]
    asked = recipe(batch_size=8, phases=phases)
    write_yaml(tmp_path / "recipe.yaml", asked.model_dump(mode="json"))
    (tmp_path / "go.py").write_text(RUN)
    launch("MULTI_CPU", tmp_path, kill=True)
    printed = launch("MULTI_CPU", tmp_path)
    assert printed.count("Phase 2 of 2: training ") == 1
    two = TrainRecord.model_validate_json((Path(asked.output) / "record.json").read_text())
    one = train(recipe(batch_size=8, output="one", phases=phases), "cpt")
    assert (two.processes, two.resumed_from_step) == (2, 4)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    ours, theirs = (load_file(Path(r.output) / "model" / "model.safetensors") for r in (two, one))
    for name, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[name].float(), rtol=0.02, atol=2e-3), name
