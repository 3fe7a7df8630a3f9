"""Several studies at once: pairs of arms over all of them, and every run as a line of CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepen.common.errors import DeepenError
from deepen.common.files import write_whole
from deepen.comparison import balance, pooling
from deepen.comparison import statistics as aggregate
from deepen.comparison.pooling import Pair, Studies
from deepen.comparison.results import read_study
from deepen.records.evaluation import EvalRecord
from deepen.records.study import ArmRecord
from deepen.records.training import TrainRecord
from deepen.report.tables import GAINS, Cell, Table, difference_cell, markdown

_LOSS = "loss_nats_per_token"


def pooled_pairs(folders: Sequence[Path], asked: Sequence[str] = ()) -> str:
    """Write pairs of arms, over all studies and in each by itself, as tables in Markdown.

    Args:
        folders: Output folders of studies.
        asked: Pairs of labels, each ``arm - other``; by default those that the studies name, else
            every arm and the reference.

    Raises:
        DeepenError: A folder holds no study, or a pair cannot be read.
    """
    studies, named = _read(folders)
    pairs = pooling.chosen_pairs(studies, asked, named)
    stages = {"after training": studies}
    tuned = {name: aggregate.fine_tuned(records) for name, records in studies.items()}
    if all(tuned.values()):
        stages["after fine-tuning"] = tuned
    tables = [_pooled(found, pairs, stage) for stage, found in stages.items()]
    return "\n\n".join(f"{table.caption}:\n\n{markdown(table)}" for table in tables)


def _read(folders: Sequence[Path]) -> tuple[dict[str, list[ArmRecord]], list[Pair]]:
    """Read studies, each named by its folder, and the pairs that they name."""
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    studies: dict[str, list[ArmRecord]] = {}
    pairs: list[Pair] = []
    for name, folder in zip(names, folders, strict=True):
        records, summary = read_study(folder)
        key = name if unique else folder.as_posix()
        if key in studies:
            raise DeepenError(f"The study in {str(folder)!r} is given twice; give each once.")
        studies[key] = [record for record in records if record.arm in summary.arms]
        pairs += [(str(arm), str(other)) for arm, other in summary.study.get("pairs") or []]
    return studies, pairs


def _pooled(studies: Studies, pairs: Sequence[Pair], stage: str) -> Table:
    """Make the table of one stage."""
    whole = {(d.arm, d.other, d.score): d for d in pooling.pooled(studies, pairs)}
    single = {
        name: {(d.arm, d.other, d.score): d for d in differences}
        for name, differences in pooling.one_by_one(studies, pairs).items()
    }
    measured = list(dict.fromkeys(score for _, _, score in whole))
    scores = [score for score in measured if score in GAINS]
    scores = scores or [score for score in measured if score.startswith(f"{_LOSS} ")]
    sources = {"all": whole} | (single if len(studies) > 1 else {})
    header = ["pair", "runs"]
    header += [f"{score}: {name}" for score in scores for name in sources]
    rows = []
    for arm, other in pairs:
        found = [sources[name].get((arm, other, score)) for score in scores for name in sources]
        runs = max((d.seeds for d in whole.values() if (d.arm, d.other) == (arm, other)), default=0)
        metrics = [GAINS.get(score, _LOSS) for score in scores for _ in sources]
        cells = [Cell(str(runs)), *map(difference_cell, found, metrics)]
        rows.append((f"{arm} − {other}", cells))
    caption = f"Differences {stage}, mean [95 % interval over pairs of runs], * = without zero"
    return Table(caption, header, rows)


def write_csv(folders: Sequence[Path], file: Path) -> None:
    """Write what every run came to, a line each, so that arms can be paired without records.

    Losses are in nats per token, times in seconds. Columns that a study has nothing for are empty.

    Args:
        folders: Output folders of studies.
        file: Where to.

    Raises:
        DeepenError: A folder holds no study, or there is no folder to write to.
    """
    if not file.parent.is_dir():
        raise DeepenError(f"There is no folder {str(file.parent)!r} to write to; make it first.")
    studies, _ = _read(folders)
    lines = [line for name, records in studies.items() for line in _lines(name, records)]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(file, written.getvalue())


def _lines(study: str, records: Sequence[ArmRecord]) -> Iterator[dict[str, str]]:
    """Yield a study's lines, column → entry."""
    gained = balance.all_changes(records)
    for record in records:
        run, tuning = record.train, record.fine_tuning
        line = {
            "study": study,
            "arm": record.arm,
            "role": record.role,
            "method": record.method,
            "seed": str(record.seed),
            "learning_rate": _rate(run),
            "steps": str(run.steps),
            "tokens": str(run.tokens),
            "flops": f"{aggregate.flops(run):.0f}",
            "seconds": f"{aggregate.seconds(run):.2f}",
            "peak_bytes": str(run.peak_bytes),
            "parameters": str(run.parameters),
            "trainable_parameters": str(run.trainable_parameters),
            "mean_training_loss": f"{aggregate.mean_losses(run)[0]:.6f}",
        }
        own = gained.get((record.arm, record.seed), {})
        line |= {name: f"{own[name]:.6f}" for name in GAINS if name in own}
        line |= _scores(record.before, "before") | _scores(record.after, "after")
        if tuning is not None and record.after_fine_tuning is not None:
            line |= {
                "fine_tuning_learning_rate": _rate(tuning),
                "fine_tuning_steps": str(tuning.steps),
                "fine_tuning_tokens": str(tuning.tokens),
                "fine_tuning_flops": f"{aggregate.flops(tuning):.0f}",
                "fine_tuning_seconds": f"{aggregate.seconds(tuning):.2f}",
            } | _scores(record.after_fine_tuning, "fine-tuned")
        yield line


def _rate(run: TrainRecord) -> str:
    """Write a run's learning rate."""
    rate = aggregate.learning_rate(run)
    return "" if rate is None else f"{rate:g}"


def _scores(evaluation: EvalRecord, stage: str) -> dict[str, str]:
    """Write the loss on every text and every metric of every task, named by side and stage."""
    return {
        " ".join([*([score.side] if score.side else []), _subject(score), stage]): (
            f"{score.value:.6f}"
        )
        for score in aggregate.scores(evaluation)
        if score.metric == _LOSS or (score.kind == "task" and score.metric != "mean acc")
    }


def _subject(score: aggregate.Score) -> str:
    """Name a text, or a task with its metric."""
    return score.subject if score.kind == "text" else f"{score.subject} {score.metric}"
