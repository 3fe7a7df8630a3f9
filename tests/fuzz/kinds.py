"""What is spoilt, and how it is then used: one function a kind of input."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from hypothesis.strategies import DataObject
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import ggufs
import shrink
import studies
import tiny
from deepen import cli, methods
from deepen.comparison.results import RECORDS, SUMMARY
from deepen.records.growth import FIELD
from deepen.training.recipe import Recipe
from fuzz.change import ANYTHING, DEEP, as_json, chance, one, spoilt_bytes, spoilt_tree

Command = list[str]
Copy = Callable[[str], Path]
"""Copies one of the sound inputs into the folder at hand, to be spoilt."""
FAMILIES = ("llama", "gemma3_text", "qwen3_moe", "gpt2", "mamba", "deepseek_v3")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT = "A line of text.\n" * 40
ROWS = '{"prompt": "What is it?", "completion": "A line of text."}\n' * 8

RECIPE: dict[str, Any] = {
    "model": "materials/grown",
    "data": {"path": "corpus.txt", "sequence_length": 64, "seed": 1, "cache": None},
    "training": {
        "max_steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 0.03,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "epsilon": 1e-8,
        "trains": "auto",
        "report_to": "none",
    },
    "seed": 0,
    "output": "run",
}
MORE_RECIPE: tuple[tuple[str, str, Any], ...] = (
    ("data", "mix", [{"path": "corpus.txt", "share": 0.5}]),
    ("data", "path", "rows.jsonl"),
    ("training", "lora", {"rank": 2, "alpha": 4.0, "blocks": [0]}),
    ("training", "protect", {"path": "corpus.txt", "share": 0.9, "max_tokens": 64}),
    ("training", "trains", [1, 2]),
    ("training", "also", ["norm"]),
)
"""What a recipe may say beside."""
STUDY: dict[str, Any] = {
    "base": "materials/base",
    "arms": ["base", {"method": "opt-deus", "options": {"fidelity": "normalised"}}],
    "new_layers": 1,
    "seeds": [0],
    "data": {"path": "corpus.txt", "sequence_length": 64},
    "training": {"max_steps": 2, "batch_size": 2, "report_to": "none"},
    "evaluation": {"perplexity": ["held_out.txt"], "max_tokens": 64},
    "output": "studied",
}
MORE_STUDY: tuple[tuple[str, Any], ...] = (
    ("arms", [{"method": "lora", "options": {"rank": 1}}, {"method": "llama-pro", "replay": 0.5}]),
    ("replay", "corpus.txt"),
    ("rates", {"grid": [1e-3, 2e-3], "text": "held_out.txt", "seed": 1, "most": 2}),
    ("fine_tuning", {"data": {"path": "rows.jsonl", "sequence_length": 32}}),
    ("pairs", [["base", "opt-deus (fidelity=normalised)"]]),
)
"""What a study may say instead or beside."""


def materials(folder: Path) -> None:
    """Make the sound inputs that are then spoilt."""
    logging.disable_progress_bar()
    for family in FAMILIES:
        shrink.model(family, num_hidden_layers=2).save_pretrained(folder / family)
    tiny.save(folder / "base", num_hidden_layers=2, hidden_size=8, intermediate_size=12)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    base.save_pretrained(folder / "sharded", max_shard_size="4KB")
    grown = str(folder / "grown")
    ggufs.write(folder / "tiny.gguf")
    run = ["grow", str(folder / "base"), grown, "-m", "llama-pro", "-n", "1"]
    cli.app(args=run, standalone_mode=False)
    cli.app(args=["pack", grown, str(folder / "pack")], standalone_mode=False)
    (folder / "corpus.txt").write_text(TEXT)
    (folder / "held_out.txt").write_text(TEXT)
    (folder / "rows.jsonl").write_text(ROWS)
    studies.write(folder / "study", *studies.study(studies.ARMS[:2], seeds=[0, 1]))


def use(base: Path) -> list[Command]:
    """Read everything of a checkpoint, grow it, and prove what was grown."""
    return [
        ["plan", base.name, "-m", "llama-pro", "-n", "1", "--sequence-length", "8"],
        ["grow", base.name, "out", "-m", "llama-pro", "-n", "1"],
        prove(base.name, "out"),
    ]


def prove(base: str, grown: str) -> Command:
    """Verify on few tokens."""
    return ["verify", base, grown, "--sequences", "1", "--length", "4"]


def quantised_files(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """A GGUF file, mostly where it says what the model is."""
    file = folder / "tiny.gguf"
    content = (folder / "materials" / file.name).read_bytes()
    file.write_bytes(spoilt_bytes(data, content, one(data, (700, 700, 2**30))))
    return [["import", file.name, "base"], *use(folder / "base")]


def headers(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """The header of a weight file, by bytes and by what it says."""
    base = copy("base")
    content = (base / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if chance(data, 40):
        (base / WEIGHTS).write_bytes(spoilt_bytes(data, content, 8 + length))
        return use(base)
    header = as_json(data, spoilt_tree(data, json.loads(content[8 : 8 + length])))
    length = one(data, (len(header), len(header), len(header), 0, 2**40, 2**63))
    (base / WEIGHTS).write_bytes(struct.pack("<Q", length) + header + content[8 + length :])
    return use(base)


def indices(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """The index of shards."""
    base = copy("sharded")
    tree = json.loads((base / INDEX).read_text())
    (base / INDEX).write_bytes(as_json(data, spoilt_tree(data, tree, one(data, (1, 3)))))
    return use(base)


def configs(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """config.json of six families."""
    base = copy(one(data, FAMILIES))
    file = base / "config.json"
    file.write_bytes(as_json(data, spoilt_tree(data, json.loads(file.read_text()))))
    return use(base)


def side_files(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """What lies beside the weights; a tokenizer is read when its model is trained."""
    base = copy("base")
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md")
    file = base / one(data, (*names, "special_tokens_map.json", "adapter_config.json"))
    sound = file.read_bytes() if file.is_file() else b'{"a": 1}'
    if file.suffix == ".json" and chance(data, 70):
        sound = as_json(data, spoilt_tree(data, json.loads(sound)))
    file.write_bytes(sound if chance(data, 30) else spoilt_bytes(data, sound))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE | {"model": "out"}))
    deeper = [*use(base), ["train", "cpt", "recipe.yaml"], ["shrink", "out", "again"]]
    return one(data, (use(base), deeper, [["widen", "base", "wide", "--neurons", "2"]]))


def pickles(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """PyTorch's weight files, zipped and not."""
    base = copy("base")
    tensors: Any = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    key = one(data, list(tensors))
    made = (
        *(None, [tensors], tensors[key], 3, "x", {"state_dict": tensors}),
        *(tensors | {key: value} for value in (None, 3, "x", [tensors[key]], {key: tensors[key]})),
        *(tensors | {key: t} for t in (tensors[key].to_sparse(), tensors[key].to("meta"))),
        *(tensors | {3: tensors[key]}, tensors | {key: tensors[key][:0]}),
        *(tensors | {key: tensors[key].cfloat()}, tensors | {key: tensors[key].int()}),
        *(tensors | {key: torch.nn.Parameter(tensors[key])}, tensors | {key: torch.ones(())}),
        *(tensors | {key: tensors[key].expand(2**20, *tensors[key].shape)},),
    )
    spoil = chance(data, 60)
    file = base / "pytorch_model.bin"
    zipped = chance(data, 50)
    torch.save(tensors if spoil else one(data, made), file, _use_new_zipfile_serialization=zipped)
    if spoil:
        within = one(data, (200, 4000, 2**30))
        file.write_bytes(spoilt_bytes(data, file.read_bytes(), within))
    return use(base)


def lineages(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """The entry that says how a model was grown."""
    grown = copy("grown")
    config = json.loads((grown / "config.json").read_text())
    if chance(data, 50):
        config[FIELD]["trainings"] = [{"stage": "cpt", "after_steps": 1, "blocks": [1]}]
    config[FIELD] = spoilt_tree(data, config[FIELD], one(data, (1, 1, 2)))
    (grown / "config.json").write_text(json.dumps(config))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE | {"model": "grown"}))
    alone = (
        prove("materials/base", "grown"),
        ["inspect", "grown"],
        ["train", "cpt", "recipe.yaml"],
    )
    return one(data, (*([command] for command in alone), use(grown)))


def parts(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """What says which files a pack, a grown checkpoint and its base have."""
    names = ("pack/pack.json", "grown/deepen-base.json", "grown/deepen-manifest.json")
    kind, _, name = one(data, names).partition("/")
    file = copy(kind) / name
    text = as_json(data, spoilt_tree(data, json.loads(file.read_text()), one(data, (1, 1, 2))))
    file.write_bytes(text)
    if kind == "pack":
        return [["attach", "materials/base", "pack", "out"], prove("materials/base", "out")]
    alone = (prove("materials/base", "grown"), ["shrink", "grown", "out"], ["pack", "grown", "out"])
    return [one(data, alone)]


def _yaml(data: DataObject, tree: Any, file: Path) -> None:
    """Write a spoilt tree; JSON is YAML."""
    text = as_json(data, spoilt_tree(data, tree, one(data, (1, 1, 2))))
    if chance(data, 20):
        more = ("!!int x", "!!bool x", "2001-99-99", "9" * 5000, "&a [*a]", "*b", "[" * 5000)
        text = b"seed: " + one(data, more).encode() + b"\n" + spoilt_bytes(data, text)
    file.write_bytes(text)


def _recipe(data: DataObject) -> dict[str, Any]:
    """Say in a sound recipe more or less."""
    tree = RECIPE | {key: dict(RECIPE[key]) for key in ("data", "training")}
    if chance(data, 50):
        section, key, value = one(data, MORE_RECIPE)
        tree[section][key] = value
    return tree


def recipes(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """The recipe of a training."""
    _yaml(data, _recipe(data), folder / "recipe.yaml")
    return [["train", one(data, ("cpt", "sft")), "recipe.yaml"]]


def study_files(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """The file of a study."""
    more = {key: value for key, value in MORE_STUDY if chance(data, 15)}
    _yaml(data, STUDY | more, folder / "study.yaml")
    return [["compare", "study.yaml"]]


def overrides(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """Values over a recipe's."""
    (folder / "recipe.yaml").write_text(json.dumps(_recipe(data)))
    keys = [f"{part}.{key}" for part in ("training", "data") for key in _fields(part)]
    odd = ("a" + ".b" * 5000, "", "=", "seed", "data.path.0", "training.betas.1", "data..seed")
    odd += ("training.lora.rank", "data.mix.0.share", "training.betas.-1", "training.also.0")
    given = []
    for _ in range(one(data, (1, 2))):
        key = one(data, odd if chance(data, 25) else keys)
        value = json.dumps(data.draw(ANYTHING))
        if chance(data, 20):
            value = one(data, ("[" * 5000, "!!int x", "{a: [b", "&a [*a]", "*b", "? x", "1e3"))
        given.append(f"{key}={value}")
    return [["train", "cpt", "recipe.yaml", "--", *given]]


def _fields(part: str) -> list[str]:
    """List what a part of a recipe may say."""
    annotation: Any = Recipe.model_fields[part].annotation
    return list(annotation.model_fields)


COMMANDS: tuple[Command, ...] = (
    ["plan", "materials/base"],
    ["grow", "materials/base", "out", "--new-layers", "1"],
    ["widen", "materials/base", "out", "--neurons", "2"],
    ["verify", "materials/base", "materials/grown", "--sequences", "1", "--length", "8"],
    ["inspect", "materials/grown"],
    ["pack", "materials/grown", "out"],
    ["attach", "materials/base", "materials/pack", "out"],
    ["shrink", "materials/grown", "out"],
    ["combine", "materials/base", *["materials/pack"] * 2, "out", "--how", "interleave"],
    ["reproduce", "materials/grown", "--base", "materials/base"],
    ["evaluate", "materials/grown", "--perplexity", "corpus.txt", "--max-tokens", "64"],
    ["scan", "materials/base", "out", "--calibration", "corpus.txt", "--max-tokens", "64"],
    ["train", "cpt", "recipe.yaml"],
    ["compare", "study.yaml"],
    ["report", "study"],
)
"""Sound ones, to which options are added."""


def options(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """Options of every command that uses no network."""
    copy("study")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    (folder / "study.yaml").write_text(json.dumps(STUDY))
    command = one(data, COMMANDS[:2] * 4 + COMMANDS)
    found: Any = typer.main.get_command(cli.app)
    for word in command[: 2 if command[0] == "train" else 1]:
        found = found.commands[word]
    named = {option.opts[0]: option.is_flag for option in found.params if option.opts[0][1] == "-"}
    known = [name for name in named if name not in ("--push-to-hub", "--private")]
    given = []
    for _ in range(one(data, (1, 2, 3))):
        name = one(data, known)
        given += [name] if named[name] else [name, _value(data, name)]
    return [[*command, *given], *([prove("materials/base", "out")] * (command[0] == "grow"))]


def _value(data: DataObject, name: str) -> str:
    """Choose a value of an option, sound or not."""
    numbers = ("1", "2", "0", "-1", str(10**6), str(10**20), "9" * 4000)
    texts = (*numbers, "x", "", "inf", "nan", "-inf", "1e-300", "1e300", "[/x]", "a\nb", "true")
    texts += ("\x1b[2J", "\u2028", "\ud800", "/dev/zero", "corpus.txt", "a - b", "x" * 5000)
    chosen = map(methods.get, methods.names())
    fields = [field for method in chosen for field in method.options.model_fields]
    places = (
        "top",
        "uniform",
        "periods",
        "quality",
        "influence",
        "importance",
        "gradient",
        "spread:0-3",
        "after:0",
        "after:-1",
    )
    places += ("after:" + "0," * 5000 + "0",)
    of: dict[str, tuple[str, ...]] = {
        "--method": (*methods.names(), *texts),
        "--placement": (
            *places,
            *texts,
            *(f"{by}:{text}" for by in ("after", "spread") for text in texts),
        ),
        "--set": tuple(f"{field}={text}" for field in [*fields, "t"] for text in texts),
        "--device": ("cpu", "meta", "cuda:99", *texts),
        "--max-shard-size": ("1KB", "5GB", "1e9TB", *texts),
    }
    return one(data, of.get(name, texts))


def records(data: DataObject, folder: Path, copy: Copy) -> list[Command]:
    """What a study left."""
    study = copy("study")
    name = one(data, (RECORDS, SUMMARY))
    text = (study / name).read_text()
    lines = text.splitlines() if name == RECORDS else [json.dumps(json.loads(text))]
    place = one(data, range(len(lines)))
    lines[place] = as_json(data, spoilt_tree(data, json.loads(lines[place]))).decode(
        errors="surrogateescape"
    )
    text = "\n".join(one(data, (lines, lines, lines * 2, lines[:-1], [DEEP])))
    (study / name).write_bytes(text.encode(errors="surrogateescape"))
    return [["report", "study"]]


KINDS: dict[str, Callable[[DataObject, Path, Copy], list[Command]]] = {
    "safetensors headers": headers,
    "shard indices": indices,
    "config.json of six families": configs,
    "tokenizers, cards and other side files": side_files,
    "pickles": pickles,
    "GGUF files": quantised_files,
    "lineages": lineages,
    "packs, manifests and deepen-base.json": parts,
    "recipes": recipes,
    "studies": study_files,
    "overrides": overrides,
    "options": options,
    "records of studies": records,
}
"""Kind → what spoils one, and returns the commands that use it, each if the one before works."""
