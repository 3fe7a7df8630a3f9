"""Records of studies that never ran: any arms, seeds and sizes, through the real schemas."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepen.comparison.balance import front, paired_differences
from deepen.comparison.statistics import fine_tuned
from deepen.comparison.study import BASE
from deepen.planning.plan import insert_after
from deepen.records.alignment import AlignmentRecord, BlockAlignment, PartAlignment
from deepen.records.evaluation import EvalRecord, TaskScore, TextScore
from deepen.records.growth import BaseIdentity, GrowRecord, Step
from deepen.records.study import ArmRecord, StudySummary
from deepen.records.training import LossPoint, SourceRecord, StepTime, TrainRecord

VERSIONS = {"deepen": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
ARMS = [
    BASE,
    "opt-deus",
    "opt-deus (fidelity=published)",
    "avg-deus",
    "solar",
    "llama-pro",
    "lesa",
]
DEPTH, STEPS, BATCH, LENGTH = 16, 120, 8, 256
TASKS = ("logiqa", "piqa", "winogrande", "arc_easy", "mmlu", "commonsense_qa", "boolq")


def grow_record(arm: str, seed: int) -> GrowRecord:
    """Make the record of a growth by half."""
    copies = arm.startswith(("solar", "llama-pro"))
    after = range(1, DEPTH, 2) if copies else range(DEPTH // 2 - 1, DEPTH - 1)
    plan = insert_after(DEPTH, after, copies=copies)
    parameters, new = 120_000_000 * plan.depth // DEPTH, 120_000_000 * 8 // DEPTH
    step = Step(
        method=arm.partition(" ")[0],
        reference="arXiv:2508.08011",
        options={"fidelity": "published"} if "published" in arm else {},
        placement=None,
        seed=seed,
        device="cpu",
        base=BaseIdentity(name="tiny-base", revision=None, fingerprint="b" * 64),
        plan=plan.to_json(),
        new_blocks=plan.new_blocks,
        trains="everything" if arm == "solar" else "new_blocks",
        preserves_function=arm.startswith(("opt", "llama")),
        versions=VERSIONS,
    )
    return GrowRecord(
        out=None,
        step=step,
        base_depth=DEPTH,
        depth=plan.depth,
        base_parameters=120_000_000,
        parameters=parameters,
        new_parameters=new,
        trainable_parameters=parameters if arm == "solar" else new,
        weight_bytes=2 * parameters,
        notes=["Sinkhorn stopped before its threshold (12 times)"] if "published" in arm else [],
        wall_seconds=3.2,
        peak_bytes=900_000_000,
    )


def eval_record(model: str, loss: float, tasks: Sequence[str], seed: int) -> EvalRecord:
    """Make the record of an evaluation from a loss."""
    text = TextScore(
        file="held_out.txt",
        sha256="e" * 64,
        tokens=40_000,
        text_bytes=160_000,
        loss_nats_per_token=loss,
        token_perplexity=math.exp(loss),
        bits_per_byte=loss / math.log(2) / 4,
    )
    scored = [
        TaskScore(
            task=task,
            metric=metric,
            value=0.9
            - loss / 8
            + 0.02 * index
            + random.Random(f"{task} {model} {seed}").gauss(0, 0.004),
            stderr=0.01,
            samples=1000,
            shots=0,
            higher_is_better=True,
            task_hash="f" * 64,
            version="1.0",
        )
        for index, task in enumerate(tasks)
        for metric in ("acc", "acc_norm")
    ]
    return EvalRecord(
        model=model,
        fingerprint="c" * 64,
        texts=[text],
        tasks=scored,
        seed=0,
        device="cpu",
        dtype="float32",
        sequence_length=LENGTH,
        batch_size=8,
        wall_seconds=8.0,
        versions=VERSIONS,
    )


def train_record(arm: str, seed: int, index: int, grow: GrowRecord | None) -> TrainRecord:
    """Make the record of a training run whose loss falls by arm and wobbles by seed and step."""
    everything = grow is None or arm == "solar"
    noise = random.Random(f"data {seed}")
    own = random.Random(f"{arm} {seed}")
    start = 3.6 + (2.5 if arm in ("solar", "lesa") else 0.4 if arm == "avg-deus" else 0.0)
    pace = 0.9 if everything else 0.6 + 0.02 * index
    curve = []
    for step in range(1, STEPS + 1, 2):
        settled = 2.9 + 0.03 * index + (start - 2.9) * math.exp(-step / 22)
        loss = settled + noise.gauss(0, 0.04) + own.gauss(0, 0.008)
        tokens = step * BATCH * LENGTH
        curve.append(
            LossPoint(
                step=step,
                tokens=tokens,
                wall_seconds=step * pace,
                loss_nats_per_token=loss,
                learning_rate=1e-3,
            )
        )
    parameters = grow.parameters if grow else 120_000_000
    return TrainRecord(
        stage="cpt",
        model="tiny-base",
        output="runs/study",
        seed=seed,
        processes=1,
        device="cpu",
        precision="float32",
        parameters=parameters,
        trainable_parameters=grow.trainable_parameters if grow else parameters,
        trainable_blocks=list(range(grow.depth if grow else DEPTH))
        if everything
        else grow.step.new_blocks,
        steps=STEPS,
        tokens=STEPS * BATCH * LENGTH,
        sequence_length=LENGTH,
        curve=curve,
        wall_seconds=STEPS * pace,
        tokens_per_second=BATCH * LENGTH / pace,
        step_time=StepTime(
            forward_seconds=pace * 0.35,
            backward_seconds=pace * (0.5 if everything else 0.42),
            optimizer_seconds=pace * (0.12 if everything else 0.05),
            total_seconds=pace,
        ),
        peak_bytes=2_400_000_000 if everything else 1_300_000_000,
        flops_per_token=7.2e8 if everything else 4.8e8,
        matmul_flops_per_second=9.0e10,
        utilisation=0.41,
        resumed_from_step=None,
        recipe={"seed": seed},
        versions=VERSIONS,
    )


def arm_record(arm: str, seed: int, index: int, tasks: Sequence[str] = TASKS) -> ArmRecord:
    """Make a line of records.jsonl."""
    grow = None if arm == BASE else grow_record(arm, seed)
    train = train_record(arm, seed, index, grow)
    wobble = random.Random(f"{arm} {seed} after").gauss(0, 0.006)
    moved = grow is not None and not grow.step.preserves_function
    before = 3.6 + (0.4 * index if moved else 0.0)
    after = 2.92 + 0.03 * ((index + 3) % 7) + wobble + random.Random(seed).gauss(0, 0.02)
    return ArmRecord(
        arm=arm,
        role="reference" if arm == BASE else "grown",
        method=arm.partition(" ")[0],
        placement=None,
        seed=seed,
        grow=grow,
        before=eval_record("tiny-base", before, tasks, 0),
        train=train,
        after=eval_record(f"{arm} trained", after, tasks, seed),
    )


def block_alignment(below: int, above: int, block: int, size: float) -> BlockAlignment:
    """Make the alignment of two blocks, the sharper the plan the higher they lie."""
    own = random.Random(f"{below} {above}")
    fade = 4000.0 / 2 ** (below - DEPTH // 2 + 2)
    cells = [[math.exp(-((x - y) ** 2) / fade) + 0.002 for x in range(48)] for y in range(48)]
    unit = sum(map(sum, cells)) / 48**2
    parts = [
        PartAlignment(
            part=part,
            units=units,
            similarity_before=own.uniform(-0.1, 0.2),
            similarity_after=own.uniform(0.3, 0.9),
            similarity_by_chance=own.uniform(0.1, 0.2),
            in_place=own.random(),
        )
        for part, units in (("heads", 16), ("neurons", 2048))
    ]
    return BlockAlignment(
        below=below,
        above=above,
        block=block,
        parts=parts,
        effective_matches=1.0 + fade,
        diagonal_mass=own.random(),
        cka=own.random(),
        function_change=4e-7,
        norm_ratios={
            role: size + own.uniform(-0.05, 0.05)
            for role in ("query", "key", "value", "gate", "up")
        },
        heat_map=[[cell / unit for cell in row] for row in cells],
    )


def aligned(record: ArmRecord) -> ArmRecord:
    """Add to a line of records.jsonl how well the parents of its new blocks align."""
    assert record.grow is not None
    new = [i for i, entry in enumerate(record.grow.step.plan) if isinstance(entry, list)]
    size = {"opt-deus": 0.8, "lesa": 0.95}.get(record.arm, 0.71) + record.seed / 100
    alignment = AlignmentRecord(
        model="grown",
        method=record.method,
        calibration="held_out.txt",
        regularisation=0.06,
        blocks=[block_alignment(i - 1, i + 1, i, size) for i in new],
    )
    return record.model_copy(update={"alignment": alignment})


def tuned(record: ArmRecord, index: int) -> ArmRecord:
    """Add a short fine-tuning to a line of records.jsonl."""
    noise = random.Random(f"rows {record.seed}")
    curve = [
        point.model_copy(
            update={
                "tokens": point.step * 700,
                "wall_seconds": point.wall_seconds / 3,
                "loss_nats_per_token": 1.3
                + 0.02 * index
                + 0.9 * math.exp(-point.step / 9)
                + noise.gauss(0, 0.05),
            }
        )
        for point in record.train.curve[:20]
    ]
    update = {"stage": "sft", "steps": 40, "tokens": 28_000, "curve": curve}
    scored = eval_record(f"{record.arm} tuned", 2.7 + 0.02 * index, TASKS, record.seed)
    fine_tuning = record.train.model_copy(update=update)
    return record.model_copy(update={"fine_tuning": fine_tuning, "after_fine_tuning": scored})


SIDED = {
    "trained on": ("base", "reference", 0.63, -0.05),
    "trained on (replay=0.25)": ("base", "alternative", 0.58, -0.16),
    "lora": ("lora", "alternative", 0.52, -0.02),
    "lora (replay=0.25)": ("lora", "alternative", 0.47, -0.11),
    "top-blocks": ("top-blocks", "alternative", 0.515, -0.04),
    "wider": ("wider", "alternative", 0.5, 0.01),
    "opt-deus": ("opt-deus", "grown", 0.6, 0.02),
    "opt-deus (replay=0.25)": ("opt-deus", "grown", 0.55, -0.09),
    "llama-pro": ("llama-pro", "grown", 0.58, -0.01),
    "avg-deus": ("avg-deus", "grown", 0.565, 0.05),
    "solar": ("solar", "grown", -0.9, 1.7),
    "random": ("random", "grown", 0.48, -0.03),
}
"""Arms of a study of new and old text: method, role, and about what is learned and forgotten."""
NEW, OLD = (3.567, 3.9), (3.186, 2.4)
"""Losses of the base on two new texts and two old ones."""


def sided_scores(
    model: str, gains: tuple[float, float], texts: int = 1, tasks: bool = False
) -> EvalRecord:
    """Make the record of an evaluation of new and old texts, and if asked for of tasks."""
    plain = eval_record(model, 3.0, TASKS[:2] if tasks else (), 0)
    learned, forgotten = gains
    losses = {f"german_{i}.jsonl": ("new", NEW[i] - learned * (1 + i / 4)) for i in range(texts)}
    losses |= {f"manuals_{i}.txt": ("old", OLD[i] + forgotten * (1 + i / 4)) for i in range(texts)}
    scored = [
        plain.texts[0].model_copy(
            update={
                "file": file,
                "side": side,
                "loss_nats_per_token": loss,
                "token_perplexity": math.exp(loss),
                "bits_per_byte": loss / math.log(2) / 4,
            }
        )
        for file, (side, loss) in losses.items()
    ]
    sides = {TASKS[0]: ("new", 0.3 + learned / 4), TASKS[1]: ("old", 0.7 - forgotten / 5)}
    of_tasks = [
        task.model_copy(update={"side": sides[task.task][0], "value": sides[task.task][1]})
        for task in plain.tasks
    ]
    return plain.model_copy(update={"texts": scored, "tasks": of_tasks})


def sided_record(arm: str, seed: int, index: int, texts: int = 1, tasks: bool = False) -> ArmRecord:
    """Make a line of records.jsonl of a study of new and old text."""
    method, role, learned, forgotten = SIDED[arm]
    record = arm_record(BASE if role != "grown" else arm, seed, index, ())
    own = random.Random(f"{arm} {seed}")
    shared = random.Random(f"order {seed}").gauss(0, 0.01)
    gains = learned + shared + own.gauss(0, 0.004), forgotten + shared / 2 + own.gauss(0, 0.003)
    train = record.train
    recipe = {"seed": seed, "training": {"learning_rate": 1e-3 / 2 ** (index % 3)}}
    update: dict[str, Any] = {"recipe": recipe, "sources": [source("new.jsonl", 1.0)]}
    if "replay" in arm:
        update["sources"] = [source("new.jsonl", 0.75), source("old.jsonl", 0.25)]
    if method == "top-blocks":
        update |= {"trainable_blocks": [12, 13, 14, 15], "trainable_parameters": 30_000_000}
    if method in ("lora", "wider"):
        recipe["training"] |= {"lora": {"rank": 8}} if method == "lora" else {"neurons": 64}
        update |= {"trainable_parameters": 29_900_000}
    kept = record.grow is None or record.grow.step.preserves_function
    return record.model_copy(
        update={
            "arm": arm,
            "role": role,
            "method": method,
            "train": train.model_copy(update=update),
            "before": sided_scores("base", (0.0, 0.0) if kept else (-2.0, 2.0), texts, tasks),
            "after": sided_scores(f"{arm} trained", gains, texts, tasks),
        }
    )


def source(name: str, share: float) -> SourceRecord:
    """Make the record of a source of training data."""
    return SourceRecord(name=name, share=share, items=900, sequences=round(960 * share), tokens=9)


def sided_study(
    arms: Sequence[str] = tuple(SIDED),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    texts: int = 1,
    tasks: bool = False,
) -> tuple[list[ArmRecord], StudySummary]:
    """Make a whole study of new and old text, of ways to train the base and of grown models."""
    records = [
        sided_record(arm, seed, index, texts, tasks)
        for seed in seeds
        for index, arm in enumerate(arms)
    ]
    return records, summary_of(records, arms, seeds)


def summary_of(
    records: Sequence[ArmRecord], arms: Sequence[str], seeds: Sequence[int], **study: Any
) -> StudySummary:
    """Conclude from records what ``compare`` does."""
    resolved: dict[str, Any] = {
        "base": "./tiny-base",
        "arms": [{"label": arm, "method": arm.partition(" ")[0]} for arm in arms],
        "new_layers": 8,
        "seeds": list(seeds),
        "training": {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
        "evaluation": {"perplexity": ["held_out.txt"]},
        "output": "runs/study",
    }
    own = [record for record in records if record.arm in arms]
    return StudySummary(
        study=resolved | study,
        arms=list(arms),
        roles={record.arm: record.role for record in records},
        seeds=list(seeds),
        differences=paired_differences(own, arms),
        fine_tuned_differences=paired_differences(fine_tuned(own), arms),
        front=front(own, arms),
        fine_tuned_front=front(fine_tuned(own), arms),
        versions=VERSIONS,
    )


def study(
    arms: Sequence[str] = ARMS, seeds: Sequence[int] = (0, 1, 2), tasks: Sequence[str] = TASKS
) -> tuple[list[ArmRecord], StudySummary]:
    """Make the records and the summary of a whole study."""
    records = [
        arm_record(arm, seed, index, tasks) for seed in seeds for index, arm in enumerate(arms)
    ]
    return records, summary_of(records, arms, seeds)


def write(folder: Path, records: Sequence[ArmRecord], summary: StudySummary) -> Path:
    """Write the two files that a report is made from."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(record.model_dump_json() + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines)
    (folder / "summary.json").write_text(summary.model_dump_json(indent=2))
    return folder
