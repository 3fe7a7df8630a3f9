"""What is spoilt, and how it is then used: one function a kind of input."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import shrink
import studies
import tiny
from deepen import cli, methods
from deepen.comparison.results import RECORDS, SUMMARY
from deepen.records.growth import FIELD
from fuzz.change import DEEP, NASTY, as_json, spoilt_bytes, spoilt_tree

Command = list[str]
FAMILIES = ("llama", "gemma3_text", "qwen3_moe", "gpt2", "mamba", "deepseek_v3")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT = "A line of text.\n" * 40

RECIPE: dict[str, Any] = {
    "model": "none",
    "data": {"path": "corpus.txt", "sequence_length": 64, "seed": 1, "cache": None},
    "training": {
        "max_steps": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 0.03,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "epsilon": 1e-8,
        "trains": "auto",
        "also": ["norm"],
    },
    "seed": 0,
    "output": "run",
}
STUDY: dict[str, Any] = {
    "base": "none",
    "arms": [
        "base",
        {"method": "lora"},
        {"method": "opt-deus", "options": {"fidelity": "normalised"}},
        "solar",
    ],
    "seeds": [0, 1],
    "data": {"path": "corpus.txt", "sequence_length": 64},
    "training": {"max_steps": 4, "batch_size": 8},
    "evaluation": {"perplexity": ["held_out.txt"]},
    "output": "study",
}


def materials(folder: Path) -> None:
    """Make the sound inputs that are then spoilt."""
    logging.disable_progress_bar()
    for family in FAMILIES:
        shrink.model(family, num_hidden_layers=2).save_pretrained(folder / family)
    tiny.save(folder / "base", num_hidden_layers=2, hidden_size=8, intermediate_size=12)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    base.save_pretrained(folder / "sharded", max_shard_size="4KB")
    run = ["grow", str(folder / "base"), str(folder / "grown"), "-m", "llama-pro", "-n", "1"]
    cli.app(args=run, standalone_mode=False)
    (folder / "corpus.txt").write_text(TEXT)
    studies.write(folder / "study", *studies.study(studies.ARMS[:2], seeds=[0, 1]))


def plan(folder: Path) -> list[Command]:
    """Read everything of a checkpoint but what growing writes."""
    return [["plan", str(folder), "-m", "llama-pro", "-n", "1", "--sequence-length", "8"]]


def grow(folder: Path) -> list[Command]:
    """Grow, and prove it if it was grown."""
    out = str(folder.parent / "out")
    return [
        ["grow", str(folder), out, "-m", "llama-pro", "-n", "1"],
        ["verify", str(folder), out, "--sequences", "1", "--length", "4"],
    ]


def headers(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """The header of a weight file, by bytes and by what it says."""
    base = copy("base")
    content = (base / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if random.random() < 0.4:
        (base / WEIGHTS).write_bytes(spoilt_bytes(random, content, 8 + length))
        return plan(base)
    header = as_json(random, spoilt_tree(random, json.loads(content[8 : 8 + length])))
    length = random.choice((len(header), len(header), len(header), 0, 2**40, 2**63))
    (base / WEIGHTS).write_bytes(struct.pack("<Q", length) + header + content[8 + length :])
    return plan(base)


def indices(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """The index of shards."""
    base = copy("sharded")
    tree = json.loads((base / INDEX).read_text())
    (base / INDEX).write_bytes(as_json(random, spoilt_tree(random, tree, random.choice((1, 3)))))
    return plan(base)


def configs(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """config.json of six families."""
    base = copy(random.choice(FAMILIES))
    file = base / "config.json"
    file.write_bytes(as_json(random, spoilt_tree(random, json.loads(file.read_text()))))
    return grow(base) if random.random() < 0.2 else plan(base)


def side_files(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """What lies beside the weights."""
    base = copy("base")
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md")
    file = base / random.choice((*names, "special_tokens_map.json", "adapter_config.json"))
    sound = file.read_bytes() if file.is_file() else b'{"a": 1}'
    if file.suffix == ".json" and random.random() < 0.7:
        sound = as_json(random, spoilt_tree(random, json.loads(sound)))
    file.write_bytes(sound if random.random() < 0.3 else spoilt_bytes(random, sound))
    return grow(base)


def pickles(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """PyTorch's weight files, zipped and not."""
    base = copy("base")
    tensors: Any = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    key = random.choice(list(tensors))
    made = (
        *(None, [tensors], tensors[key], 3, "x", {"state_dict": tensors}),
        *(tensors | {key: value} for value in (None, 3, "x", [tensors[key]], {key: tensors[key]})),
        *(tensors | {key: t} for t in (tensors[key].to_sparse(), tensors[key].to("meta"))),
        *(tensors | {3: tensors[key]}, tensors | {key: tensors[key][:0]}),
        *(tensors | {key: tensors[key].cfloat()}, tensors | {key: tensors[key].int()}),
        *(tensors | {key: torch.nn.Parameter(tensors[key])}, tensors | {key: torch.ones(())}),
        *(tensors | {key: tensors[key].expand(2**20, *tensors[key].shape)},),
    )
    spoil = random.random() < 0.6
    file = base / "pytorch_model.bin"
    zipped = random.random() < 0.5
    torch.save(
        tensors if spoil else random.choice(made), file, _use_new_zipfile_serialization=zipped
    )
    if spoil:
        within = random.choice((200, 4000, 2**30))
        file.write_bytes(spoilt_bytes(random, file.read_bytes(), within))
    return plan(base)


def lineages(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """The entry that says how a model was grown."""
    grown = copy("grown")
    config = json.loads((grown / "config.json").read_text())
    config[FIELD]["trainings"] = [{"stage": "cpt", "after_steps": 1, "blocks": [1]}]
    if random.random() < 0.5:
        del config[FIELD]["trainings"]
    config[FIELD] = spoilt_tree(random, config[FIELD], random.choice((1, 1, 2)))
    (grown / "config.json").write_text(json.dumps(config))
    base = str(folder / "materials" / "base")
    prove = ["verify", base, str(grown), "--sequences", "1", "--length", "4"]
    return [random.choice((["inspect", str(grown)], prove, plan(grown)[0]))]


def _yaml(random: Random, tree: Any, file: Path) -> None:
    """Write a spoilt tree; JSON is YAML."""
    text = as_json(random, spoilt_tree(random, tree, random.choice((1, 1, 2))))
    if random.random() < 0.2:
        more = ("!!int x", "!!bool x", "2001-99-99", "9" * 5000, "&a [*a]", "*b", "[" * 5000)
        text = b"seed: " + random.choice(more).encode() + b"\n" + spoilt_bytes(random, text)
    file.write_bytes(text)


def recipes(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """The recipe of a training."""
    _yaml(random, RECIPE, folder / "recipe.yaml")
    return [["train", random.choice(("cpt", "sft")), str(folder / "recipe.yaml")]]


def study_files(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """The file of a study."""
    _yaml(random, STUDY, folder / "study.yaml")
    return [["compare", str(folder / "study.yaml")]]


def overrides(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """Values over a recipe's."""
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    keys = [*RECIPE["training"], *RECIPE["data"]]
    odd = ("a" + ".b" * 5000, "", "=", "seed", "data.path.0", "training.betas.1", "data..seed")
    given = []
    for _ in range(random.choice((1, 2))):
        key = random.choice(
            (f"training.{random.choice(keys)}", f"data.{random.choice(keys)}", *odd)
        )
        value = random.choice((json.dumps(random.choice(NASTY)), "[" * 5000, "!!int x", "{a: [b"))
        given.append(f"{key}={value}")
    return [["train", "cpt", str(folder / "recipe.yaml"), "--", *given]]


def options(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """Options of the command line."""
    numbers = ("0", "1", "2", "-1", str(10**6), str(10**20), "9" * 4000)
    texts = (*numbers, "inf", "nan", "-inf", "1e-300", "1e300", "", "x", "[/x]", "a\nb", "true")
    method = random.choice(methods.names())
    fields = [*methods.get(method).options.model_fields, "t"]
    places = ("top", "uniform", "periods", "quality", "influence", "spread:0-3", "after:0")
    places = (*places, "after:-1", "after:" + "0," * 5000 + "0", "spread:" + random.choice(texts))
    choices = (
        ["--set", f"{random.choice(fields)}={random.choice(texts)}"],
        ["--new-layers", random.choice(numbers)],
        ["--per-gap", random.choice(numbers)],
        ["--seed", random.choice(numbers)],
        ["--sequences", random.choice(numbers[1:3] + numbers[4:6])],
        ["--sequence-length", random.choice(numbers[1:3] + numbers[4:6])],
        ["--placement", random.choice((*places, *texts, "after:" + random.choice(texts)))],
        ["--device", random.choice(("cpu", "meta", *texts))],
    )
    given = [part for _ in range(random.choice((1, 2, 3))) for part in random.choice(choices)]
    return [["plan", str(folder / "materials" / "base"), "--method", method, *given]]


def records(random: Random, folder: Path, copy: Callable[[str], Path]) -> list[Command]:
    """What a study left."""
    study = copy("study")
    name = random.choice((RECORDS, SUMMARY))
    text = (study / name).read_text()
    lines = text.splitlines() if name == RECORDS else [json.dumps(json.loads(text))]
    place = random.randrange(len(lines))
    lines[place] = as_json(random, spoilt_tree(random, json.loads(lines[place]))).decode(
        errors="surrogateescape"
    )
    text = "\n".join(random.choice((lines, lines, lines * 2, lines[:-1], [DEEP])))
    (study / name).write_bytes(text.encode(errors="surrogateescape"))
    return [["report", str(study)]]


KINDS: dict[str, Callable[[Random, Path, Callable[[str], Path]], list[Command]]] = {
    "safetensors headers": headers,
    "shard indices": indices,
    "config.json of six families": configs,
    "tokenizers, cards and other side files": side_files,
    "pickles": pickles,
    "lineages": lineages,
    "recipes": recipes,
    "studies": study_files,
    "overrides": overrides,
    "options": options,
    "records of studies": records,
}
"""Kind → what spoils one, and returns the commands that use it, each if the one before works."""
