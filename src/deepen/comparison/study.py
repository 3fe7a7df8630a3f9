"""The study file: which arms, on which budget, and how they are scored."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from deepen import methods
from deepen.base.registry import file_name
from deepen.common.errors import DeepenError, unknown
from deepen.common.settings import Settings, Tree, apply_overrides, differences, read_yaml, validate
from deepen.comparison.arm import BASE, MOST_ARMS, PARTS, Arm, written_out
from deepen.methods.method import parse_options
from deepen.records.evaluation import Side
from deepen.records.study import Role
from deepen.training.phases.phase import ends
from deepen.training.recipe import (
    DataConfig,
    Length,
    MixedSource,
    Name,
    Output,
    Recipe,
    Seed,
    Sequences,
    Stage,
    Tokens,
    TrainingConfig,
)

ARMS = "arms"
"""Name of the folder in which arms work."""
_WHOLE = ("auto", "everything")
_LONGEST_NAME = 200
"""Bytes of an arm's folder; file systems take 255, and some names get a suffix."""
Files = Name | Annotated[list[Name], Field(max_length=1000)]
"""One file or several."""
Names = Annotated[list[Name], Field(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class EvaluationConfig(Settings):
    """How arms are scored, before and after training; see ``deepen.evaluation.evaluate``."""

    new: Files = Field(default_factory=list)
    """Held-out text of the kind that is to be learned."""
    old: Files = Field(default_factory=list)
    """Text of a kind that the base knows and that is to be kept."""
    perplexity: Files = Field(default_factory=list)
    """Text files that are neither. The first of all texts also shows what blocks compute, if it is
    plain text."""
    new_tasks: Names = Field(default_factory=list)
    """lm-evaluation-harness tasks that are to be learned."""
    old_tasks: Names = Field(default_factory=list)
    """Tasks whose scores are to be kept."""
    tasks: Names = Field(default_factory=list)
    """Tasks that are neither."""
    task_folders: Names = Field(default_factory=list)
    """Folders of tasks of your own."""
    max_tokens: Tokens | None = None
    """Tokens of each text file."""
    sequence_length: Length | None = None
    """Tokens that the model sees at once."""
    batch_size: Sequences = 8
    """Sequences in a forward pass."""
    limit: Count | None = None
    """Examples of each task."""
    shots: Annotated[int, Field(ge=0, le=1000)] = 0
    """Examples in the prompt."""

    @property
    def texts(self) -> list[tuple[str, Side | None]]:
        """All text files, each with its side."""
        sides: list[tuple[Files, Side | None]] = [
            (self.new, "new"),
            (self.old, "old"),
            (self.perplexity, None),
        ]
        return [(file, side) for files, side in sides for file in listed(files)]

    @property
    def sides_of_tasks(self) -> dict[str, Side | None]:
        """All tasks, each with its side."""
        sides: list[tuple[list[str], Side | None]] = [
            (self.new_tasks, "new"),
            (self.old_tasks, "old"),
            (self.tasks, None),
        ]
        return {task: side for tasks, side in sides for task in tasks}

    @property
    def calibration(self) -> Path | None:
        """What blocks are compared on: the first text file, unless its lines are documents."""
        first = self.texts[0][0] if self.texts else ""
        return Path(first) if first and not file_name(first).endswith(".jsonl") else None


def listed(files: Files) -> list[str]:
    """Return files as a list, also if there is only one."""
    return [files] if isinstance(files, str) else files


class RateSearch(Settings):
    """How each arm's learning rate is chosen: by what a seed of its own comes to.

    Arms that name a rate of their own keep it.
    """

    grid: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, max_length=100)
    """Rates that are tried first; in pre-training an arm's own ``rates`` go before them."""
    text: Files
    """Held-out text, or chat rows, that the loss is taken on; not what arms are scored on."""
    seed: Seed
    """Seed of the search; not one of the study's."""
    most: Annotated[int, Field(ge=1, le=100)] = 8
    """How many rates are tried at most: where the best one is the lowest or the highest, the next
    one beyond it follows."""
    max_tokens: Tokens | None = None
    """Tokens of each text; by default as in the evaluation."""


class FineTuning(Settings):
    """Supervised fine-tuning after continual pre-training, alike for every arm."""

    data: DataConfig
    """Rows, as in a recipe."""
    training: TrainingConfig = TrainingConfig()
    """How to train, as in a recipe."""
    rates: RateSearch | None = None
    """How each arm's learning rate of fine-tuning is chosen, after it was pre-trained at its own
    rate on the search's seed; by default all arms have that of ``training``."""


class Study(Settings):
    """Arms × seeds on one budget."""

    title: Annotated[str, Field(max_length=1000)] | None = None
    """Heading of the report; by default the names of the study's folder and of the base."""
    base: Name
    """The model that every arm starts from: folder or hub id."""
    arms: Annotated[list[Arm], BeforeValidator(written_out)] = Field(
        min_length=1, max_length=MOST_ARMS
    )
    """What is compared; the base, trained on, is added in front if it is missing."""
    new_layers: Annotated[int, Field(ge=1, le=10**5)] | None = None
    """Number of new blocks; by default what each method's paper does."""
    seeds: list[Seed] = Field(default=[0], min_length=1, max_length=100)
    """Seeds of growth, data order and training; arms are paired by seed."""
    data: DataConfig
    """Training data, as in a recipe; the same tokens in the same order for every arm."""
    training: TrainingConfig = TrainingConfig()
    """Continual pre-training, as in a recipe."""
    replay: Files = Field(default_factory=list)
    """Old text for training: where the sequences come from that arms replay."""
    rates: RateSearch | None = None
    """How each arm's learning rate of pre-training is chosen; by default all arms have that of
    ``training``."""
    budget: Literal["tokens", "flops"] = "tokens"
    """What all arms have alike: the tokens that they train on, or the FLOPs of the reference, so
    that an arm that costs less for a token trains longer."""
    parameters: Annotated[int, Field(ge=1, le=10**15)] | None = None
    """Parameters that ``lora``, ``top-blocks`` and ``wider`` train, or somewhat fewer; by default
    as many as the first grown arm that trains its new blocks alone."""
    pairs: list[tuple[Name, Name]] = Field(default_factory=list, max_length=1000)
    """Labels of arms whose differences the report shows first."""
    fine_tuning: FineTuning | None = None
    """What follows it, if anything."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How arms are scored."""
    alignment: bool = True
    """Whether to measure how well the parents of new blocks align, before training; seconds for
    small models, minutes for each arm at 8B."""
    keep: Literal["records", "models"] = "records"
    """Whether the grown and trained models of finished arms are kept, or only what was recorded."""
    output: Output
    """Folder of the study."""

    @property
    def all_arms(self) -> list[Arm]:
        """The arms, with the un-grown base."""
        has_base = any(arm.method == BASE for arm in self.arms)
        return self.arms if has_base else [Arm(method=BASE), *self.arms]

    def role(self, arm: Arm) -> Role:
        """Return what an arm is in the study; the others are held to the first whole base."""
        if arm.is_grown:
            return "grown"
        bases = [one for one in self.all_arms if one.method == BASE]
        whole = [one for one in bases if one.training.get("trains", "auto") in _WHOLE]
        plain = [one for one in whole if not one.replay]
        return "reference" if arm.name == (plain or whole or bases)[0].name else "alternative"

    def rate_search(self, stage: Stage) -> RateSearch | None:
        """Return how learning rates of a stage are chosen, if they are."""
        if stage == "cpt":
            return self.rates
        return self.fine_tuning.rates if self.fine_tuning else None

    def arm_folder(self, arm: Arm, seed: int) -> Path:
        """Return where an arm works."""
        return Path(self.output) / ARMS / arm.folder / f"seed-{seed}"

    def recipe(
        self,
        arm: Arm,
        seed: int,
        stage: Stage,
        model: Path | str,
        out: Path,
        rate: float | None = None,
    ) -> Recipe:
        """Return what an arm is trained with.

        Args:
            arm: The arm, settled (see ``deepen.comparison.settle``).
            seed: Of data order and training.
            stage: Pre-training, or the fine-tuning that follows it.
            model: The checkpoint to train.
            out: The run's folder.
            rate: Learning rate that was chosen for the arm and the stage.
        """
        if stage == "cpt":
            data, training, own = self.data, self.training, dict(arm.training)
        else:
            assert self.fine_tuning is not None
            data, training = self.fine_tuning.data, self.fine_tuning.training
            own = {k: v for k, v in arm.training.items() if k in PARTS} | arm.fine_tuning
        own |= {} if rate is None else {"learning_rate": rate}
        tree = training.model_dump(exclude_unset=True) | own
        training = validate(TrainingConfig, tree, f"training of arm {arm.name!r}")
        if arm.method == BASE and training.trains == "auto":
            training = training.model_copy(update={"trains": "everything"})
        shared = str(Path(self.output) / "tokens" / stage)
        mix = data.mix
        if arm.replay and stage == "cpt":
            mix = [*mix, MixedSource(path=self.replay, share=arm.replay)]
        data = data.model_copy(update={"cache": data.cache or shared, "mix": mix})
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
    """Check what a schema cannot: methods, options, labels, seeds, texts.

    Raises:
        DeepenError: A method or option is unknown, two things are the same that must not be, or
            one is named that is not there.
    """
    _check_names(study)
    if len(set(study.seeds)) < len(study.seeds):
        raise DeepenError("The study names a seed twice; give each once.")
    for key, search in (
        ("rates", study.rate_search("cpt")),
        ("fine_tuning.rates", study.rate_search("sft")),
    ):
        if search and search.seed in study.seeds:
            raise DeepenError(
                f"Learning rates are chosen with seed {search.seed} ({key}.seed), which is one of "
                f"the study's seeds; give the search a seed of its own."
            )
    files = Counter(file_name(file) for file, _ in study.evaluation.texts)
    if twice := [name for name, count in files.items() if count > 1]:
        raise DeepenError(f"Two texts of the evaluation are called {twice[0]!r}; rename one.")
    for arm in study.all_arms:
        if arm.is_grown:
            request = arm.request(study.new_layers, study.seeds[0])
            parse_options(methods.get(request.method), request.options)
        if arm.replay and not study.replay:
            raise DeepenError(
                f"Arm {arm.name!r} replays old text, and the study names none; give it as replay."
            )
        training = study.recipe(arm, 0, "cpt", study.base, Path(study.output)).training
        if training.max_steps and study.budget == "tokens":
            ends(training, training.max_steps)
        if study.fine_tuning is not None:
            study.recipe(arm, 0, "sft", study.base, Path(study.output))
    return study


def _check_names(study: Study) -> None:
    """Insist on labels that differ, and on pairs of arms that are there."""
    names = [arm.name for arm in study.all_arms]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DeepenError(f"Two arms of the study are called {twice[0]!r}; give one a label.")
    for arm in study.all_arms:
        if arm.folder in ("", ".", "..") or len(arm.folder.encode()) > _LONGEST_NAME:
            raise DeepenError(
                f"Arm {arm.name[:80]!r} has no name that a folder can have; give it a "
                f"label of letters and digits, {_LONGEST_NAME} at most."
            )
    folders = [arm.folder.casefold() for arm in study.all_arms]
    for arm, folder in zip(study.all_arms, folders, strict=True):
        if folders.count(folder) > 1:
            raise DeepenError(
                f"Two arms of the study would work in one folder, {arm.folder!r}; give one another "
                f"label."
            )
    for name in (name for pair in study.pairs for name in pair):
        if name not in names:
            raise unknown("arm (pairs)", name, names)


def difference(old: Tree, new: Tree) -> str | None:
    """Return the dotted key of the first setting that two studies do not share.

    More seeds and more arms are no difference: their records are added to those that are there.
    The title is none either, nor are the pairs that are shown first, nor whether alignment is
    measured: they change no other number.
    """
    arms = {Arm.model_validate(arm).name: arm for arm in old.get("arms") or []}
    for arm in new.get("arms") or []:
        name = Arm.model_validate(arm).name
        if arms.get(name, arm) != arm:
            return f"arms ({name})"
    others = differences(old, new, without=("arms", "seeds", "title", "alignment", "pairs"))
    return next((key for key, _, _ in others), None)
