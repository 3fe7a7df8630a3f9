"""States of frozen blocks that models have in common: losses are the whole model's, bit for bit."""

from pathlib import Path

import pytest
import torch

import tiny
from deepen.base.text import PASSAGE
from deepen.evaluation.evaluate import evaluate
from deepen.evaluation.trunk import TrunkStates
from deepen.growth.grow import grow
from deepen.training.trunk.bypass import Bypass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models grown from it above block 3, and texts."""
    folder = tmp_path_factory.mktemp("trunk")
    tiny.save(folder / "base")
    for seed in (0, 1):
        options = {"method": "random", "new_layers": 2, "placement": "top", "seed": seed}
        grow(folder / "base", folder / f"grown-{seed}", options={"output_scale": 1.0}, **options)
    (folder / "passage.txt").write_text(PASSAGE)
    (folder / "half.txt").write_text(PASSAGE[:400])
    return folder


def losses(model: Path, *files: Path, **settings: object) -> list[float]:
    given = {"sequence_length": 24, "batch_size": 3} | settings
    scored = evaluate(model, perplexity=files, **given).texts
    return [text.loss_nats_per_token for text in scored]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences trunks are run on, proofs of one sequence apart."""
    rows, compute = [], Bypass.compute

    def counting(self: Bypass, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rows.extend([1] * len(batch["input_ids"]) * ("labels" not in batch))
        return compute(self, batch)

    monkeypatch.setattr(Bypass, "compute", counting)
    return rows


def test_the_next_model_starts_above_and_losses_are_the_same_bits(
    folder: Path, tmp_path: Path, computed: list[int]
) -> None:
    files = folder / "passage.txt", folder / "half.txt"
    where = TrunkStates(tmp_path / "states", 4)
    counts = []
    for model in ("grown-0", "grown-1", "base"):
        found = losses(folder / model, *files, trunk=where)
        assert found == losses(folder / model, *files)
        counts.append(len(computed))
    assert counts[0] > 10
    assert len(set(counts)) == 1, "what the first one computed is found"
    assert len(list((tmp_path / "states").iterdir())) == 2


@pytest.mark.parametrize(
    "change", ["trunk", "text", "length", "batch", "blocks"], ids=lambda change: f"other-{change}"
)
def test_states_of_anything_else_are_not_found(
    folder: Path, tmp_path: Path, computed: list[int], change: str
) -> None:
    where = TrunkStates(tmp_path / "states", 4)
    losses(folder / "base", folder / "passage.txt", trunk=where)
    before, model, file = len(computed), folder / "base", folder / "passage.txt"
    settings: dict[str, object] = {"trunk": where}
    if change == "trunk":
        model = tiny.save(tmp_path / "other", seed=7)
    elif change == "text":
        file = folder / "half.txt"
    elif change == "length":
        settings["sequence_length"] = 23
    elif change == "batch":
        settings["batch_size"] = 2
    else:
        settings["trunk"] = TrunkStates(tmp_path / "states", 3)
    found = losses(model, file, **settings)
    assert len(computed) > before
    assert found == losses(model, file, **settings | {"trunk": None})


def test_a_low_trunk_is_not_worth_it(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    for blocks in (0, 1):
        losses(folder / "base", folder / "half.txt", trunk=TrunkStates(tmp_path / "no", blocks))
    assert not computed
    assert not (tmp_path / "no").exists()
