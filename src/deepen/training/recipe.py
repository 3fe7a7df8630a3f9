"""The recipe: what to train, on which data, for how long, and where to write."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from deepen.common.errors import DeepenError
from deepen.common.settings import Settings, apply_overrides, read_yaml, validate

Stage = Literal["cpt", "sft"]
"""Continual pre-training or supervised fine-tuning."""
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1e4)]
"""What a learning rate is multiplied by."""
MOST_STEPS = 10**7
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Lead = Annotated[float, Field(ge=0, le=MOST_STEPS)]
"""A share of the steps if below 1, else a number of steps."""
Sequences = Annotated[int, Field(ge=1, le=10**6)]
"""Sequences at once."""
Length = Annotated[int, Field(ge=2, le=10**7)]
"""Tokens in a sequence; the first cannot be predicted, so that one alone would have no loss."""
Tokens = Annotated[int, Field(ge=1, le=10**15)]
Blocks = Annotated[list[Annotated[int, Field(ge=0, lt=10**5)]], Field(max_length=5000)]
"""Indices of blocks."""
WhatTrains = Literal["auto", "new_blocks", "everything"] | Blocks
Outside = Literal["norm", "head", "embeddings"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, torch and transformers all take."""


def _nameable(name: str) -> str:
    """Refuse what no file system and no hub takes as a name."""
    if "\0" in name:
        raise ValueError("it holds a zero character, which no path and no name has")
    return name


Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_nameable)]
"""A path, a hub id, or part of either."""


def _beside_which(path: str) -> str:
    """Refuse the root of the file system, which has no place beside it, and links in a circle."""
    try:
        place = Path(path).resolve()
    except (OSError, RuntimeError):  # Python before and after 3.13
        raise ValueError("its links lead nowhere") from None
    if len(place.parts) == 1:
        raise ValueError("nothing can be written to the root of the file system")
    return path


Output = Annotated[Name, AfterValidator(_beside_which)]
Paths = Name | Annotated[list[Name], Field(min_length=1, max_length=5000)]
"""One or several."""

_STAGE_DEFAULTS: Mapping[Stage, Mapping[str, Any]] = {
    "cpt": {"learning_rate": 2e-4, "weight_decay": 0.1},
    "sft": {"learning_rate": 2e-5, "weight_decay": 0.0},
}


class MixedSource(Settings):
    """Further data of a mixture, for example old text that is replayed so as not to be forgotten.

    What is not said here is as in the ``data`` that it stands in, ``name`` and ``revision`` apart.
    """

    path: Paths
    """Files or folders, or a hub data set's id."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of all sequences that come from here; in fine-tuning of all rows."""
    text_column: Name | None = None
    """Column that holds the text of a document."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the documents of a .txt file."""
    name: Name | None = None
    """Configuration of a hub data set."""
    split: Name | None = None
    """Split of a hub data set."""
    revision: Name | None = None
    """Branch, tag or commit of a hub data set."""


class DataConfig(Settings):
    """Where the training text comes from and how it is cut."""

    path: Paths
    """Files or folders (.txt, .jsonl, .ndjson, .csv, .json, .parquet; all but the last two also as
    .gz), or a hub data set's id."""
    mix: list[MixedSource] = Field(default_factory=list, max_length=100)
    """Further data, each with its share of the sequences; ``path`` has the rest of them."""
    sequence_length: Length = 2048
    """Tokens in a sequence: exactly in pre-training, at most in fine-tuning."""
    text_column: Name = "text"
    """Column that holds the text of a document."""
    streaming: bool = False
    """Read only as much as the budget needs, through a shuffle buffer, instead of everything."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the documents of a .txt file; without it a file is one document."""
    name: Name | None = None
    """Configuration of a hub data set, for example ``sample-10BT``."""
    split: Name = "train"
    """Split of a hub data set."""
    revision: Name | None = None
    """Branch, tag or commit of a hub data set."""
    seed: Seed | None = None
    """Seed of the data's order; by default the recipe's."""
    cache: Name | None = None
    """Folder for the tokens; by default ``data`` in the run's folder. Arms of a study share one."""
    format: Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text"] = "auto"
    """Columns of fine-tuning rows; ``auto`` looks at the first row."""
    loss: Literal["answer", "all"] = "answer"
    """Fine-tuning: which tokens the loss is taken on."""
    packing: bool = False
    """Fine-tuning: put several short rows into one sequence; they do not see each other."""
    chat_template: Name | None = None
    """Fine-tuning: Jinja file to use instead of the tokenizer's own chat template."""

    @property
    def shares(self) -> list[Fraction]:
        """Share of each source, the main one first: the decimal numbers that were written.

        Raises:
            DeepenError: Nothing is left to the main one.
        """
        mixed = [Fraction(str(source.share)) for source in self.mix]
        if sum(mixed) >= 1:
            raise DeepenError(
                f"The shares of data.mix add up to {float(sum(mixed)):g} and leave nothing to "
                f"data.path; lower them."
            )
        return [1 - sum(mixed, Fraction(0)), *mixed]

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        """Leave a share to the main data."""
        _ = self.shares
        return self


class LoraConfig(Settings):
    """Low-rank adapters (LoRA, arXiv 2106.09685) on frozen weights, merged when they are trained.

    They sit on every linear layer of the chosen blocks, and peft makes them.
    """

    rank: Annotated[int, Field(ge=1, le=10**5)]
    """Rank of every adapter."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """The adapters' product is scaled by alpha / rank; by default alpha is twice the rank."""
    blocks: Literal["all", "new", "kept"] | Blocks = "all"
    """Which blocks have adapters: all, those that growing added, those that it kept, or a list."""


class ProtectConfig(Settings):
    """Keep what trains clear of what a text needs (gradient projection memory, arXiv 2103.09762).

    A linear layer's update leaves alone the few directions in which almost all of its input lies
    while the model reads the text, so that it hardly changes what the layer computes there.
    """

    path: Paths
    """Old text: files or folders, or a hub data set's id, otherwise read as ``data`` is."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the input's mean square that the protected directions hold."""
    max_tokens: Annotated[int, Field(ge=1, le=10**8)] = 4096
    """How much of the text is read, in whole sequences from all over it."""


class PhaseConfig(Settings):
    """A stretch of the run in which a part of the model trains; see ``TrainingConfig.phases``."""

    trains: WhatTrains | None = None
    """As in the recipe, which says it for the phases that do not."""
    also: tuple[Outside, ...] | None = None
    """As in the recipe, which says it for the phases that do not."""
    steps: Annotated[float, Field(gt=0, le=MOST_STEPS)] | None = None
    """How long it is: a share of the run's steps if below 1, else a number of steps. The last phase
    has the rest."""
    learning_rate: Annotated[float, Field(gt=0, le=1e4)] | None = None
    """Peak learning rate of the phase; by default the recipe's."""
    ramp: Lead = 0.0
    """How long the learning rate of what starts to train grows from 0 to that of the rest: a share
    of the phase's steps if below 1, else a number of steps. The first phase has ``warmup``."""


class TrainingConfig(Settings):
    """How to train."""

    max_steps: Steps | None = None
    """Budget as optimizer steps."""
    epochs: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """Budget as passes over the data, over ``data.path`` alone in a mixture; 1 if no budget is
    given."""
    max_tokens: Tokens | None = None
    """Budget as tokens seen, over all processes."""
    batch_size: Sequences = 64
    """Sequences in an optimizer step, over all processes."""
    micro_batch_size: Sequences | None = None
    """Sequences in one forward pass of one process; by default all that a process has in a step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; by default 2e-4 for pre-training and 2e-5 for fine-tuning."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Course of the learning rate after warm-up; ``wsd`` is constant, then falls."""
    warmup: Lead = 0.03
    """Warm-up: a share of the steps if below 1, else a number of steps."""
    decay: Share = 0.1
    """Share of the steps in which ``wsd`` falls."""
    min_learning_rate_share: Share = 0.1
    """Where ``cosine`` and ``wsd`` end, as a share of the peak."""
    output_rate_factor: Factor = 1.0
    """Factor on the learning rate of what most methods zero: the trained blocks' output
    projections, or the norms behind them."""
    output_lead: Lead = 0.0
    """How long those train alone at the start: a share of the steps if below 1, else a number."""
    block_rate_decay: Factor = 1.0
    """Factor on the learning rate from each trained block to the next one below it; embeddings
    come below the lowest."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] | None = None
    """AdamW's, on trained matrices only; by default 0.1 for pre-training, 0 for fine-tuning."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """AdamW's."""
    max_gradient_norm: Annotated[float, Field(ge=0, le=1e9)] = 1.0
    """Longer gradients are cut to this length; 0 leaves them."""
    trains: WhatTrains = "auto"
    """``auto`` is what the method's paper trains; or only the new blocks, everything, or a list of
    blocks."""
    also: tuple[Outside, ...] = ()
    """What else trains beside the blocks; the head of tied embeddings is the embeddings."""
    phases: Annotated[list[PhaseConfig], Field(min_length=1, max_length=100)] | None = None
    """What trains for how long, one phase after another, for example new blocks first and then
    everything at a lower rate; by default one thing from beginning to end. Each phase has the
    schedule's course to itself."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and nothing else, whatever ``trains`` says."""
    neurons: Annotated[int, Field(ge=1, le=10**7)] | None = None
    """Train the last so many neurons of every FFN and nothing else, whatever ``trains`` says."""
    protect: ProtectConfig | None = None
    """Old text whose directions no update may touch: in new blocks that write nothing yet those of
    the output projections, in others of every linear layer that trains."""
    trunk_cache: Literal["auto"] | bool = "auto"
    """Whether what the frozen blocks below the lowest trained one compute is kept on disk, so that
    later epochs, and other runs on the same tokens, start above them; ``auto`` where that saves
    time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the passes; ``auto`` is bfloat16 on a GPU and float32 on a CPU. Trained weights
    are float32 in either."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` is the GPU if there is one."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, from the lowest trained block up."""
    fused_loss: Literal["auto", "off"] = "auto"
    """``auto`` fuses head and loss where a GPU and Liger are present."""
    save_every: Steps | None = None
    """Steps between checkpoints to resume from; by default a tenth of the run, 50 to 500."""
    log_every: Steps | None = None
    """Steps between points of the loss curve; by default 1, more in runs over 2000 steps."""
    average_checkpoints: Annotated[int, Field(ge=1, le=100)] = 1
    """Over how many checkpoints, the end of the run being the last, what was trained is averaged;
    ``save_every`` steps lie between them (Apriel-1.5, arXiv 2510.01141, takes six)."""
    keep_checkpoints: bool = False
    """Keep the optimizer's state after the end."""
    save_dtype: Literal["stored", "float32"] = "stored"
    """Dtype of the trained model: the one that the checkpoint was stored in, or float32."""
    report_to: Name | Annotated[list[Name], Field(max_length=20)] = "tensorboard"
    """Trackers, as transformers names them; ``none`` for none."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that load data, for each training process."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Allow one budget, one way to train a part, and micro-batches that divide the batch."""
        given = [key for key in ("max_steps", "epochs", "max_tokens") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both budgets; give one")
        if self.lora and self.neurons:
            raise ValueError("lora and neurons both say what trains; give one")
        if self.lora and self.average_checkpoints > 1:
            raise ValueError(
                "the mean of adapters' factors is not that of what they add to the weights; leave "
                "out average_checkpoints or lora"
            )
        self._check_phases()
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size "
                f"{self.batch_size}"
            )
        return self

    def _check_phases(self) -> None:
        """Refuse phases beside what cannot change with them, and phases of no known length."""
        if self.phases is None:
            return
        fixed = ("lora", "neurons", "output_rate_factor", "output_lead", "block_rate_decay")
        for key in fixed:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is for one part that trains from beginning to end, and phases change "
                    f"it; leave out one of them"
                )
        if self.phases[0].ramp:
            raise ValueError("the first of the phases has a ramp; it is warmup there")
        if any(phase.steps is None for phase in self.phases[:-1]):
            raise ValueError("one of the phases does not say its steps; only the last one need not")


class Recipe(Settings):
    """One training run."""

    model: Name
    """Checkpoint folder or hub id."""
    data: DataConfig
    """Training data."""
    training: TrainingConfig = TrainingConfig()
    """How to train."""
    seed: Seed = 0
    """Seed of data order and of everything else random."""
    output: Output
    """Run folder; the trained model goes to its ``model`` folder."""
    stage: Stage | None = None
    """Set in the resolved recipe, which is for this stage alone."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        """Look again at data that were changed since they were read, as arms of a study do."""
        _ = self.data.shares
        return self

    def resolved(self, stage: Stage) -> "Recipe":
        """Return the recipe with the stage's defaults filled in, so that it can be repeated.

        Raises:
            DeepenError: It was resolved for the other stage.
        """
        if self.stage not in (None, stage):
            raise DeepenError(
                f"The recipe says stage: {self.stage}; run `deepen train {self.stage}`, or leave "
                f"that line out."
            )
        training = self.training
        filled = {k: v for k, v in _STAGE_DEFAULTS[stage].items() if getattr(training, k) is None}
        if not (training.max_steps or training.epochs or training.max_tokens):
            filled["epochs"] = 1.0
        data = self.data
        if data.seed is None:
            data = data.model_copy(update={"seed": self.seed})
        training = training.model_copy(update=filled)
        return self.model_copy(update={"training": training, "data": data, "stage": stage})


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: The file.
        overrides: Each ``dotted.key=value``; they win over the file.

    Raises:
        DeepenError: The file is missing or damaged, a key is unknown, or a value does not fit.
    """
    return validate(Recipe, apply_overrides(read_yaml(path), overrides), Path(path).name)
