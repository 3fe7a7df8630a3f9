"""verify notices every change of a grown checkpoint, or docs/reliability.md says why it cannot.

A change is made twice: as it is, which the manifest notices, and with a manifest that was made anew
to fit it, which leaves what the base can tell.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import FolderSource
from deepen.base.identity import tensor_digest
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.base_files import BASE_FILES, MANIFEST
from deepen.growth.manifest import read_manifest, write_manifest
from deepen.records.verification import VerifyRecord
from deepen.verification.claim import claim_of
from deepen.verification.verify import _check_config
from runs import trained

WRITTEN, SIDE = "files are those that were written", "files beside the weights are the base's"
TENSORS, CONFIG = "every tensor present, nothing extra", "config.json true for the new depth"
BASE, LINEAGE = "base is the one that was grown", "lineage true to its methods"
KEPT, NEW = "kept blocks bit-identical", "new blocks finite"
REFUSED, UNNOTICED = "refused", "unnoticed"
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"


Change = Callable[[Path], Any]
"""Changes the checkpoint in a folder."""


class Pair(NamedTuple):
    """A base and what it was grown into: 6 → 8 blocks, the new ones 4 and 6."""

    base: Path
    grown: Path


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def pair(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """A pair of each family in turn; the grown one is put back after every change."""
    folder = tmp_path_factory.mktemp("pair")
    base = llama
    if request.param != "llama":
        model_type, settings = CASES[request.param]
        base = folder / "base"
        shrink.model(model_type, **settings).to(torch.bfloat16).save_pretrained(base)
        tiny.tokenizer().save_pretrained(base)
    deepen.grow(base, folder / "grown", new_layers=2)
    return Pair(base, folder / "grown")


@pytest.fixture
def copy(pair: Pair, tmp_path: Path) -> Pair:
    """The same, to be changed."""
    return Pair(
        Path(shutil.copytree(pair.base, tmp_path / pair.base.name)),
        Path(shutil.copytree(pair.grown, tmp_path / "grown")),
    )


def verified(pair: Pair) -> VerifyRecord:
    """Verify, with few tokens."""
    return deepen.verify(pair.base, pair.grown, sequences=1, length=8)


def noticed(pair: Pair) -> set[str]:
    """Return the checks that fail."""
    try:
        return {check.name for check in verified(pair).checks if not check.passed}
    except DeepenError:
        return {REFUSED}


def forge(pair: Pair) -> None:
    """Write a manifest that fits what lies there."""
    made = read_manifest(pair.grown)
    names = made.new_tensors if made else []
    grown = FolderSource(pair.grown)
    new = {name: tensor_digest(grown.load(name)) for name in names if name in grown.infos}
    write_manifest(pair.grown, FolderSource(pair.base), {}, new)


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def flip(file: Path, name: str, number: int = 0) -> None:
    """Flip the lowest bit of one 16-bit number of a tensor, in the file."""
    raw = bytearray(file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    start, _ = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    raw[8 + length + start + 2 * number] ^= 1
    file.write_bytes(raw)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Return what changes a checkpoint's tensors."""

    def apply(folder: Path) -> None:
        loaded = load_file(folder / "model.safetensors")
        change(loaded)
        save_file(loaded, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def step(**fields: Any) -> Change:
    """Return what changes fields of the latest growth in the lineage."""
    return config(lambda c: c["deepen"]["steps"][-1].update(fields))


def config(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Return what changes config.json."""
    return lambda folder: edit_json(folder / "config.json", change)


def every(*changes: Change) -> Change:
    """Return what makes several changes."""
    return lambda folder: [change(folder) for change in changes]


def loud(folder: Path) -> None:
    """Let the new blocks write something, where it passes a norm too."""

    def change(stored: dict[str, torch.Tensor]) -> None:
        for name, tensor in stored.items():
            if name.startswith(("model.layers.4.", "model.layers.6.")) and (
                "down_proj" in name or "norm" in name
            ):
                tensor.add_(0.5)

    tensors(change)(folder)


def write(name: str, text: str = "{}") -> Change:
    """Return what writes a file."""
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Change:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()


def swap_words(folder: Path) -> None:
    """Let two tokens change their places in the vocabulary."""

    def change(content: Any) -> None:
        words = content["model"]["vocab"]
        one, other = list(words)[100:102]
        words[one], words[other] = words[other], words[one]

    edit_json(folder / "tokenizer.json", change)


def excuse(folder: Path) -> None:
    """Change a kept block, and tell of a training that changed it."""
    flip(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight")
    training = {"stage": "cpt", "after_steps": 1, "blocks": [0, 4, 6], "steps": 9}
    config(lambda c: c["deepen"].update(trainings=[training]))(folder)
    loud(folder)


UP = "model.layers.4.mlp.up_proj.weight"
MOVED = [0, 1, 2, [2, 3, 0.5], 3, 4, [4, 5, 0.5], 5]

TAMPERED: dict[str, tuple[Change, str]] = {
    "an output that writes": (loud, NEW),
    "a number that is none": (tensors(lambda t: t[UP][0].fill_(float("nan"))), NEW),
    "a tensor missing": (tensors(lambda t: t.pop(UP)), TENSORS),
    "a tensor more": (tensors(lambda t: t.update(extra=torch.zeros(2))), TENSORS),
    "another dtype": (tensors(lambda t: t.update({UP: t[UP].float()})), TENSORS),
    "another shape": (tensors(lambda t: t.update({UP: t[UP][:-1].clone()})), TENSORS),
    "blocks to train that are kept": (
        config(lambda c: c["deepen"].update(new_blocks=[0])),
        REFUSED,
    ),
    "the same in the step alone": (step(new_blocks=[0]), REFUSED),
    "another place of a new block": (
        every(
            step(plan=MOVED, new_blocks=[3, 6]),
            config(lambda c: c["deepen"].update(new_blocks=[3, 6])),
        ),
        KEPT,
    ),
    "a promise withdrawn, and an output that writes": (
        every(step(preserves_function=False), loud),
        LINEAGE,
    ),
    "what trains": (step(trains="everything"), LINEAGE),
    "the paper": (step(reference="arXiv:2401.02415"), LINEAGE),
    "the base's fingerprint": (
        config(lambda c: c["deepen"]["steps"][0]["base"].update(fingerprint="0")),
        BASE,
    ),
    "the base's SHA-256": (
        config(lambda c: c["deepen"]["steps"][0]["base"].update(sha256="0")),
        BASE,
    ),
    "the lineage": (config(lambda c: c.pop("deepen")), REFUSED),
    "words of the tokenizer": (swap_words, SIDE),
    "settings of the tokenizer": (write("tokenizer_config.json"), SIDE),
    "no tokenizer": (remove("tokenizer.json"), SIDE),
    "how text is generated": (write("generation_config.json"), SIDE),
    "a chat template": (write("chat_template.jinja", "{{ messages }}"), SIDE),
    "more tokens": (write("added_tokens.json", '{"<more>": 320}'), SIDE),
    "weights of an older format": (write("pytorch_model.bin"), SIDE),
    "another index": (write("model.safetensors.index.json", '{"weight_map": {}}'), SIDE),
    "an adapter": (write("adapter_config.json"), SIDE),
    "code": (write("modeling_own.py", "raise SystemExit"), SIDE),
    "code in a folder": (lambda f: [(f / "own").mkdir(), write("own/code.py")(f)], SIDE),
    "code that config.json asks for": (
        config(lambda c: c.update(auto_map={"AutoModel": "modeling_own.Own"})),
        CONFIG,
    ),
    "other weights that config.json asks for": (
        every(
            lambda f: shutil.copy(f / "model.safetensors", f / "other.safetensors"),
            config(lambda c: c.update(transformers_weights="other.safetensors")),
        ),
        CONFIG,
    ),
    "no weights": (remove("model.safetensors"), REFUSED),
    "no config": (remove("config.json"), REFUSED),
    "what shrink writes": (
        lambda folder: edit_json(
            folder / BASE_FILES, lambda c: c["texts"].update({"config.json": "{}"})
        ),
        f"{BASE_FILES} true of the base",
    ),
    # What follows only the manifest notices; docs/reliability.md names each.
    "a bit of a new block": (lambda f: flip(f / "model.safetensors", UP), UNNOTICED),
    "a new block": (tensors(lambda t: t[UP].normal_()), UNNOTICED),
    "the sign of a silent zero": (
        tensors(lambda t: t["model.layers.4.mlp.down_proj.weight"].fill_(-0.0)),
        UNNOTICED,
    ),
    "an option, and an output that fits it": (
        every(loud, step(preserves_function=False, options={"output_scale": 1.0})),
        UNNOTICED,
    ),
    "another method of the same promise": (step(method="avg-deus"), UNNOTICED),
    "how it was asked for": (
        step(placement="uniform", seed=7, device="cuda", versions={"deepen": "9"}),
        UNNOTICED,
    ),
    "a training that never was": (excuse, UNNOTICED),
    "no deepen-base.json": (remove(BASE_FILES), UNNOTICED),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_every_change_is_noticed(copy: Pair, case: str) -> None:
    change, without_manifest = TAMPERED[case]
    change(copy.grown)
    found = noticed(copy)
    assert found & {WRITTEN, REFUSED}
    if without_manifest == UNNOTICED:
        forge(copy)
        assert noticed(copy) == set()
        assert f"- **{case}**" in DOCS.read_text(encoding="utf-8")
    else:
        assert without_manifest in found


def test_the_docs_name_nothing_else_as_unnoticed() -> None:
    section = DOCS.read_text(encoding="utf-8").partition("## Tampering")[2].partition("\n## ")[0]
    unnoticed = {case for case, (_, found) in TAMPERED.items() if found == UNNOTICED}
    assert section.count("\n- **") == len(unnoticed)


@pytest.mark.parametrize(
    ("method", "spoilt"),
    [("llama-pro", "up_proj"), ("solar", "down_proj"), ("repeat", "down_proj")],
)
def test_a_bit_of_a_copied_block_is_noticed_by_the_base(
    pair: Pair, tmp_path: Path, method: str, spoilt: str
) -> None:
    deepen.grow(pair.base, tmp_path / "copied", method=method, new_layers=2)
    copied = Pair(pair.base, tmp_path / "copied")
    assert noticed(copied) == set()
    new = next(iter(read_manifest(copied.grown).new_tensors)).split(".")[2]
    flip(copied.grown / "model.safetensors", f"model.layers.{new}.mlp.{spoilt}.weight")
    forge(copied)
    assert noticed(copied) == {NEW}


def test_without_a_manifest_or_with_another_one_it_says_so(copy: Pair) -> None:
    """Who kept the manifest's SHA-256 is not deceived by one that was made anew."""
    kept = verified(copy).manifest
    assert deepen.verify(*copy, manifest=kept, sequences=1, length=8).passed
    flip(copy.grown / "model.safetensors", UP)
    forge(copy)
    again = deepen.verify(*copy, manifest=kept, sequences=1, length=8)
    assert [check.name for check in again.checks if not check.passed] == [WRITTEN]
    (copy.grown / MANIFEST).unlink()
    record = verified(copy)
    assert record.passed
    assert record.manifest is None
    assert "`deepen reproduce`" in next(c.detail for c in record.checks if c.name == WRITTEN)
    assert not deepen.verify(*copy, manifest=kept, sequences=1, length=8).passed
    assert not deepen.reproduce(copy.grown, base=copy.base).passed
    (copy.grown / MANIFEST).write_text("{")
    assert noticed(copy) == {REFUSED}


def test_a_bit_of_every_kind_of_kept_tensor_is_noticed_by_the_base(copy: Pair) -> None:
    model, file = open_model(copy.grown), copy.grown / "model.safetensors"
    names = [model.family.name(7, suffix) for suffix in model.anatomy.blocks[7].stored]
    names += model.anatomy.outside
    (copy.grown / MANIFEST).unlink()
    for some in zip(names[::2], names[1::2] or names[-1:], strict=False):
        for name in some:
            flip(file, name, 5)
        detail = next(c.detail for c in verified(copy).checks if c.name == KEPT and not c.passed)
        for name in some:
            assert f"{name} differs from the base's" in detail
            flip(file, name, 5)
    assert noticed(copy) == set()


def others(value: Any) -> Iterator[Any]:
    """Yield values that a field of config.json might be changed to."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value * 2 + 1
    elif isinstance(value, str):
        yield f"{value}x"
    elif isinstance(value, list):
        yield [*value[1:], value[0], value[0]]
    elif isinstance(value, dict):
        for key, entry in value.items():
            for changed in others(entry):
                yield {**value, key: changed}
    else:
        yield 1


def test_every_field_of_the_config_is_held_to_the_base(pair: Pair) -> None:
    """RoPE, norms, ties, block types, activations, heads: whatever it is, changed, gone or new."""
    base, grown = open_model(pair.base), FolderSource(pair.grown)
    claim, before = claim_of(base, grown, trained=False), dict(grown.config)

    def passes(content: dict[str, Any]) -> bool:
        grown.config = content
        return _check_config(base, grown, claim).passed

    assert passes(before)
    for field in before.keys() - {"deepen"}:
        assert not passes({key: before[key] for key in before if key != field}), field
        for value in others(before[field]):
            assert not passes(before | {field: value}), (field, value)
    assert not passes(before | {"attention_bias_": None})


def test_another_revision_of_the_base_is_noticed(copy: Pair) -> None:
    theta = lambda c: c.update(rope_theta=1e6, rms_norm_eps=1e-3)  # noqa: E731
    edit_json(copy.base / "config.json", theta)
    assert CONFIG in noticed(copy)
    shutil.copy(copy.grown / "tokenizer.json", copy.base)
    swap_words(copy.base)
    assert SIDE in noticed(copy)
    flip(copy.base / "model.safetensors", "model.layers.0.mlp.up_proj.weight")
    assert BASE in noticed(copy)


def test_a_new_card_is_told_and_passes(copy: Pair) -> None:
    """People go on writing the card, and nothing reads it."""
    write("README.md", "# Mine")(copy.grown)
    record = verified(copy)
    assert record.passed
    assert "README.md, which no loader reads, was changed" in record.checks[3].detail
    (copy.grown / ".cache").mkdir()
    write(".cache/of-the-hub")(copy.grown)
    assert noticed(copy) == set()


def test_a_trained_model_has_a_manifest_of_its_own(llama: Path, tmp_path: Path) -> None:
    deepen.grow(llama, tmp_path / "grown", new_layers=2)
    pair = Pair(llama, trained(tmp_path / "grown", tmp_path, also=["norm"]))
    manifest = read_manifest(pair.grown)
    assert manifest is not None
    assert {n.split(".")[2] for n in manifest.new_tensors if "layers" in n} == {"4", "6"}
    assert "model.norm.weight" in manifest.new_tensors
    grown = read_manifest(tmp_path / "grown")
    assert grown is not None
    assert manifest.made_from["model.safetensors"] == grown.files["model.safetensors"]
    assert noticed(pair) == set()
    flip(pair.grown / "model.safetensors", "model.norm.weight")
    assert noticed(pair) == {WRITTEN}
    forge(pair)
    assert noticed(pair) == set()
    shutil.copy(tmp_path / "grown" / MANIFEST, pair.grown)
    assert noticed(pair) == {WRITTEN}
