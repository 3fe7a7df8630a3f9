"""Tasks of lm-evaluation-harness, through its Python API.

Task names are looked up in the user's folders, then in ``tasks/`` here, then among the harness's
own; these are some 14,000 files, and are read only if a name is not found before.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepen.common.errors import DeepenError, unknown
from deepen.common.progress import Progress, silent
from deepen.records.evaluation import TaskScore

FOLDER = Path(__file__).parent / "tasks"
"""Our own task files."""

# A metric without a closed form for its standard error is resampled so often.
_BOOTSTRAPS = 1000
# Where a task's file and its data's cache lie is not part of what the task is.
_PLACES = {"config_source", "cache_dir"}


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data, ready to run."""

    leaves: Mapping[str, Any]
    """Every single task by name."""
    groups: Mapping[str, Any]
    """Every group by name."""

    def hash_of(self, name: str) -> str:
        """Return SHA-256 of a task's resolved configuration, for a group over those of its tasks.

        A local data file enters by its content and not by its path; other paths are left out.
        """
        if name in self.groups:
            names = sorted(task.config.task for task in self.groups[name].get_all_tasks())
            return _sha256([self.hash_of(leaf) for leaf in names])
        return _sha256(_without_paths(self.leaves[name].dump_config()))


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are run."""

    batch_size: int
    """Sequences in a forward pass."""
    max_length: int | None
    """Tokens that the model sees at once; by default as many as it has positions."""
    limit: int | None
    """Use only so many examples of each task."""
    shots: int
    """Examples in the prompt, unless a task fixes none."""
    seed: int
    """Seed of drawing them, and of everything else random."""


@dataclass(frozen=True)
class ExampleScores:
    """A metric of one task, example by example."""

    task: str
    """The task."""
    metric: str
    """The metric."""
    values: list[float]
    """Its value in each example, in the order of the task's data."""
    higher_is_better: bool
    """Direction of the metric."""


def versions() -> dict[str, str]:
    """Return the versions of the software that decides what a task is."""
    return {package: version(package) for package in ("lm_eval", "datasets")}


def load(names: Sequence[str], folders: Sequence[str | Path] = ()) -> Tasks:
    """Find tasks by name and fetch their data; without names there are none.

    Raises:
        DeepenError: A folder or a task is unknown, a task file is wrong, or data cannot be had.
    """
    if not names:
        return Tasks({}, {})
    paths = [FOLDER, *(Path(folder) for folder in folders)]
    with _contained():
        manager = _manager(paths, names)
        for name in names:
            if name not in manager.all_tasks:
                raise unknown("task", name, manager.all_tasks)
        leaves: dict[str, Any] = {}
        groups: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            loaded = _load(manager, name)
            if again := sorted(leaves.keys() & loaded["tasks"].keys()):
                raise DeepenError(
                    f"Task {again[0]!r} is asked for twice, by itself or in groups; name it once."
                )
            leaves |= loaded["tasks"]
            groups |= loaded.get("groups", {})
    return Tasks(leaves, groups)


def run(
    tasks: Tasks,
    module: Any,  # noqa: ANN401 (classes of transformers)
    tokenizer: Any,  # noqa: ANN401
    settings: TaskSettings,
    progress: Progress = silent,
) -> list[TaskScore]:
    """Score a model in every task; one entry per metric.

    Args:
        tasks: The tasks.
        module: The loaded model.
        tokenizer: The model's.
        settings: How they are run.
        progress: Called at the beginning and at the end.

    Raises:
        DeepenError: A task cannot be run with this model.
    """
    if not tasks.leaves:
        return []
    progress("tasks", 0.0)
    results = _evaluated(tasks, module, tokenizer, settings, each=False)
    progress("tasks", 1.0)
    return [score for name in results["results"] for score in _scores(name, results, tasks)]


def run_each(
    tasks: Tasks,
    module: Any,  # noqa: ANN401 (classes of transformers)
    tokenizer: Any,  # noqa: ANN401
    settings: TaskSettings,
) -> list[ExampleScores]:
    """Score a model in every example of every task, for metrics that are means over examples.

    Args:
        tasks: The tasks; groups count by what is in them.
        module: The loaded model.
        tokenizer: The model's.
        settings: How they are run.

    Raises:
        DeepenError: A task cannot be run with this model, or none has such a metric.
    """
    results = _evaluated(tasks, module, tokenizer, settings, each=True)
    found: dict[tuple[str, str], list[float]] = {}
    for name, examples in results["samples"].items():
        for example in sorted(examples, key=lambda one: one["doc_id"]):
            for metric in example["metrics"]:
                if _is_finite(example[metric]):
                    kind = example["filter"]
                    key = metric if kind == "none" else f"{metric},{kind}"
                    found.setdefault((name, key), []).append(float(example[metric]))
    if not found:
        raise DeepenError(
            f"No metric of {', '.join(tasks.leaves)} is a mean over examples, so models cannot be "
            f"compared example by example; name a task with one, such as acc."
        )
    higher = results["higher_is_better"]
    return [
        ExampleScores(name, key, values, higher.get(name, {}).get(key.split(",")[0]) is not False)
        for (name, key), values in found.items()
    ]


def _evaluated(
    tasks: Tasks,
    module: Any,  # noqa: ANN401 (classes of transformers)
    tokenizer: Any,  # noqa: ANN401
    settings: TaskSettings,
    *,
    each: bool,
) -> Any:  # noqa: ANN401 (the harness's tree of results)
    """Let the harness run tasks, and keep what it found of each example if that is wanted."""
    # Not ``simple_evaluate``, which asks git and the operating system about everything else, too.
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    with _contained():
        _prepare(tasks, settings)
        try:
            return evaluate(
                lm=HFLM(
                    pretrained=module,
                    tokenizer=tokenizer,
                    batch_size=settings.batch_size,
                    max_length=settings.max_length,
                    device=str(module.device),
                ),
                task_dict={"tasks": dict(tasks.leaves), "groups": dict(tasks.groups)},
                limit=settings.limit,
                bootstrap_iters=0 if each else _BOOTSTRAPS,
                log_samples=each,
            )
        except Exception as error:  # task files run code of any kind
            raise DeepenError(
                f"lm-evaluation-harness could not run {', '.join(tasks.leaves)} "
                f"({_reason(error)}); correct the task file or leave the task out."
            ) from error


def _prepare(tasks: Tasks, settings: TaskSettings) -> None:
    """Set seeds, and the number of examples in prompts."""
    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    torch.manual_seed(settings.seed)
    for task in tasks.leaves.values():
        if task.get_config("num_fewshot") != 0:  # a task that fixes 0 means it
            task.set_config(key="num_fewshot", value=settings.shots)
        task.set_fewshot_seed(seed=settings.seed)


def _scores(name: str, results: Mapping[str, Any], tasks: Tasks) -> Iterator[TaskScore]:
    """Read one task's or group's metrics out of the harness's results."""
    metrics = results["results"][name]
    leaves = (
        [task.config.task for task in tasks.groups[name].get_all_tasks()]
        if name in tasks.groups
        else [name]
    )
    for key, value in metrics.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr"):
            continue
        stderr = metrics.get(f"{metric}_stderr,{kind}")
        higher = results["higher_is_better"].get(name, {}).get(metric)
        yield TaskScore(
            task=name,
            metric=metric if kind == "none" else key,
            value=value,
            stderr=stderr if _is_finite(stderr) else None,
            samples=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
            shots=results["n-shot"].get(name, results["n-shot"][leaves[0]]),
            higher_is_better=higher is not False,
            task_hash=tasks.hash_of(name),
            version=str(results["versions"].get(name)),
        )


def _is_finite(value: object) -> bool:
    """Tell a number from the harness's ``"N/A"``."""
    return isinstance(value, float | int) and math.isfinite(value)


def _manager(folders: Iterable[Path], names: Sequence[str]) -> Any:  # noqa: ANN401
    """Index task files, the harness's own only if the names ask for them."""
    from lm_eval.tasks import TaskManager

    for folder in folders:
        if not folder.is_dir():
            raise DeepenError(f"There is no task folder {str(folder)!r}; check the path.")
        if not any(folder.rglob("*.yaml")):
            raise DeepenError(f"The task folder {str(folder)!r} holds no .yaml file.")
    paths = list(folders)
    manager = TaskManager(include_path=paths, include_defaults=False)
    if all(_is_complete(manager.task_index, name) for name in names):
        return manager
    return _with_defaults(tuple(paths))


@functools.lru_cache(maxsize=1)
def _with_defaults(folders: tuple[Path, ...]) -> Any:  # noqa: ANN401
    """Index task files together with the harness's own, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders))


def _is_complete(index: Mapping[str, Any], name: object) -> bool:
    """Say whether a task, or a group with all of its members, is in an index."""
    if not isinstance(name, str):
        return True  # a task written out inside the group's own file
    if name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    return not isinstance(members, list) or all(_is_complete(index, part) for part in members)


def _load(manager: Any, name: str) -> Any:  # noqa: ANN401
    """Build one task or group, which fetches its data."""
    try:
        return manager.load([name])
    except Exception as error:  # the harness and datasets raise many types
        offline = isinstance(error, ConnectionError) or "OfflineMode" in repr(error)
        advice = (
            "run it once while the hub can be reached, or pass a task folder whose task of that "
            "name reads a local file"
            if offline
            else "check the task's file and its data set"
        )
        raise DeepenError(
            f"The data of task {name!r} cannot be had ({_reason(error)}); {advice}."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _sha256(value: object) -> str:
    """Hash anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    # A function without source code shows where it lies in memory.
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


def _without_paths(value: Any) -> Any:  # noqa: ANN401 (a tree of JSON values)
    """Put a file's hash in the place of every string that is the path of one."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items() if key not in _PLACES}
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in value]
    if isinstance(value, str) and len(value) < 4096 and "\n" not in value:
        with contextlib.suppress(OSError, ValueError):
            if Path(value).is_file():
                return "sha256:" + hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return value


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keep the harness's notes off the terminal, and its hands off everybody's generators."""
    logger = logging.getLogger("lm_eval")
    level, python, arrays = logger.level, random.getstate(), np.random.get_state()
    logger.setLevel(logging.ERROR)
    try:
        # There is no switch for all of its bars. What goes wrong is raised, not printed.
        quiet = io.StringIO()
        with (
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
            torch.random.fork_rng(),
        ):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(arrays)
