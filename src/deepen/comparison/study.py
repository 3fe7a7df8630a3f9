"""The study file: which arms, on which budget, and how they are scored."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deepen import methods
from deepen.common.errors import DeepenError
from deepen.common.settings import Settings, Tree, apply_overrides, differences, read_yaml, validate
from deepen.methods.method import parse_options
from deepen.records.growth import GrowChoice, GrowRequest
from deepen.records.study import Role
from deepen.training.recipe import DataConfig, Recipe, Stage, TrainingConfig

ARMS = "arms"
"""Name of the folder in which arms work."""
BASE = "base"
"""Method of an arm that is the base, trained on."""
_WHOLE = ("auto", "everything")


class Arm(GrowChoice):
    """One way to make the model that is trained; what it leaves out is the study's."""

    method: str
    """Growth method, or ``base`` for the un-grown base."""
    label: str = ""
    """Name in records and report; by default the method and what is said beside it."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of continual pre-training that are this arm's own, for example a learning rate."""

    @property
    def name(self) -> str:
        """The label."""
        own = dict(self.options)
        own |= {k: v for k in ("placement", "new_layers") if (v := getattr(self, k)) is not None}
        own |= {"per_gap": self.per_gap} if self.per_gap != 1 else {}
        own |= self.training
        details = ", ".join(f"{key}={value}" for key, value in own.items())
        return self.label or (f"{self.method} ({details})" if details else self.method)

    @property
    def folder(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^\w.=-]+", "_", self.name).strip("_")

    def request(self, study: "Study", seed: int) -> GrowRequest:
        """Return how the arm's model is grown."""
        choice = {name: getattr(self, name) for name in GrowChoice.model_fields}
        choice["new_layers"] = self.new_layers or study.new_layers
        return GrowRequest(**choice, seed=seed)


def _as_arm(value: object) -> object:
    """Read the short form of an arm, its method alone."""
    return {"method": value} if isinstance(value, str) else value


class EvaluationConfig(Settings):
    """How arms are scored, before and after training; see ``deepen.evaluation.evaluate``."""

    perplexity: str | list[str] = Field(default_factory=list)
    """Text files; the first one also shows what blocks compute, if it is plain text."""
    tasks: list[str] = Field(default_factory=list)
    """lm-evaluation-harness tasks."""
    task_folders: list[str] = Field(default_factory=list)
    """Folders of tasks of your own."""
    max_tokens: int | None = None
    """Tokens of each text file."""
    sequence_length: int | None = None
    """Tokens that the model sees at once."""
    batch_size: int = 8
    """Sequences in a forward pass."""
    limit: int | None = None
    """Examples of each task."""
    shots: int = 0
    """Examples in the prompt."""

    @property
    def files(self) -> list[str]:
        """The text files, also if there is only one."""
        return [self.perplexity] if isinstance(self.perplexity, str) else self.perplexity

    @property
    def calibration(self) -> Path | None:
        """What blocks are compared on: the first text file, unless its lines are documents."""
        first = Path(self.files[0]) if self.files else None
        return first if first and first.suffix != ".jsonl" else None


class FineTuning(Settings):
    """Supervised fine-tuning after continual pre-training, alike for every arm."""

    data: DataConfig
    """Rows, as in a recipe."""
    training: TrainingConfig = TrainingConfig()
    """How to train, as in a recipe."""


class Study(Settings):
    """Arms × seeds on one budget."""

    title: str | None = None
    """Heading of the report; by default the names of the study's folder and of the base."""
    base: str
    """The model that every arm starts from: folder or hub id."""
    arms: list[Annotated[Arm, BeforeValidator(_as_arm)]] = Field(min_length=1)
    """What is compared; the un-grown base is added in front if it is missing."""
    new_layers: int | None = None
    """Number of new blocks; by default what each method's paper does."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds of growth, data order and training; arms are paired by seed."""
    data: DataConfig
    """Training data, as in a recipe; the same tokens in the same order for every arm."""
    training: TrainingConfig = TrainingConfig()
    """Continual pre-training, as in a recipe."""
    fine_tuning: FineTuning | None = None
    """What follows it, if anything."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How arms are scored."""
    alignment: bool = True
    """Whether to measure how well the parents of new blocks align, before training; seconds for
    small models, minutes for each arm at 8B."""
    keep: Literal["records", "models"] = "records"
    """Whether the grown and trained models of finished arms are kept, or only what was recorded."""
    output: str
    """Folder of the study."""

    @property
    def all_arms(self) -> list[Arm]:
        """The arms, with the un-grown base."""
        has_base = any(arm.method == BASE for arm in self.arms)
        return self.arms if has_base else [Arm(method=BASE), *self.arms]

    def role(self, arm: Arm) -> Role:
        """Return what an arm is in the study; the first base that trains everything is held to."""
        if arm.method != BASE:
            return "grown"
        bases = [one for one in self.all_arms if one.method == BASE]
        whole = [one for one in bases if one.training.get("trains", "auto") in _WHOLE]
        return "reference" if arm.name == (whole or bases)[0].name else "alternative"

    def arm_folder(self, arm: Arm, seed: int) -> Path:
        """Return where an arm works."""
        return Path(self.output) / ARMS / arm.folder / f"seed-{seed}"

    def recipe(self, arm: Arm, seed: int, stage: Stage, model: Path | str, out: Path) -> Recipe:
        """Return what an arm is trained with."""
        if stage == "cpt":
            data, training = self.data, self.training
            tree = apply_overrides(
                training.model_dump(exclude_unset=True),
                [f"{k}={v}" for k, v in arm.training.items()],
            )
            training = validate(TrainingConfig, tree, f"training of arm {arm.name!r}")
        else:
            assert self.fine_tuning is not None
            data, training = self.fine_tuning.data, self.fine_tuning.training
        if arm.method == BASE and training.trains == "auto":
            training = training.model_copy(update={"trains": "everything"})
        shared = str(Path(self.output) / "tokens" / f"{stage}-seed-{seed}")
        data = data.model_copy(update={"cache": data.cache or shared})
        return Recipe(model=str(model), data=data, training=training, seed=seed, output=str(out))


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a YAML file.

    Args:
        path: The file.
        overrides: Each ``dotted.key=value``; they win over the file.

    Raises:
        DeepenError: The file is missing or damaged, a key is unknown, or a value does not fit.
    """
    return checked(validate(Study, apply_overrides(read_yaml(path), overrides), Path(path).name))


def checked(study: Study) -> Study:
    """Check what a schema cannot: methods, options, labels.

    Raises:
        DeepenError: A method or option is unknown, or two arms or seeds are the same.
    """
    names = [arm.name for arm in study.all_arms]
    for name in names:
        if names.count(name) > 1:
            raise DeepenError(f"Two arms of the study are called {name!r}; give one a label.")
    folders = [arm.folder.casefold() for arm in study.all_arms]
    for arm, folder in zip(study.all_arms, folders, strict=True):
        if folders.count(folder) > 1:
            raise DeepenError(
                f"Two arms of the study would work in one folder, {arm.folder!r}; give one another "
                f"label."
            )
    if len(set(study.seeds)) < len(study.seeds):
        raise DeepenError("The study names a seed twice; give each once.")
    for arm in study.all_arms:
        if arm.method != BASE:
            request = arm.request(study, study.seeds[0])
            parse_options(methods.get(request.method), request.options)
        study.recipe(arm, 0, "cpt", study.base, Path(study.output))
    return study


def difference(old: Tree, new: Tree) -> str | None:
    """Return the dotted key of the first setting that two studies do not share.

    More seeds and more arms are no difference: their records are added to those that are there.
    The title is none either, nor is whether alignment is measured: it changes no other number.
    """
    arms = {Arm.model_validate(arm).name: arm for arm in old.get("arms") or []}
    for arm in new.get("arms") or []:
        name = Arm.model_validate(arm).name
        if arms.get(name, arm) != arm:
            return f"arms ({name})"
    others = differences(old, new, without=("arms", "seeds", "title", "alignment"))
    return next((key for key, _, _ in others), None)
