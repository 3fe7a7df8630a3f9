"""``deepen plan``, ``grow``, ``verify``, ``inspect`` and ``methods``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deepen.cli.options import (
    Device,
    Json,
    MaxShardSize,
    Model,
    Out,
    Overwrite,
    Private,
    PushToHub,
    Revision,
    check_wish,
    console,
    fulfil_wish,
    show,
    takes_request,
)
from deepen.common.bounded import read_text
from deepen.records.growth import GrowRequest

if TYPE_CHECKING:
    from deepen.records.verification import PeftTargets


@takes_request
def plan(
    model: Model,
    request: GrowRequest,
    revision: Revision = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", min=1, help="Tokens in a training sequence.")
    ] = None,
    sequences: Annotated[
        int, typer.Option("--sequences", min=1, help="Sequences in one forward pass.")
    ] = 1,
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option("--precision", help="Arithmetic of training.")
    ] = "bfloat16",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations anew in training.")
    ] = False,
    everything_for: Annotated[
        float,
        typer.Option(
            "--everything-for",
            min=0,
            max=1,
            help="Share of the steps, at the end, in which everything trains (training.phases).",
        ),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Show what grow would do and what training would cost; nothing is written."""
    from deepen.growth.preview import plan as run
    from deepen.report import terminal

    with terminal.progress_bar() as progress:
        record = run(
            model,
            request,
            revision=revision,
            sequence_length=sequence_length,
            sequences=sequences,
            precision=precision,
            activation_checkpointing=checkpointing,
            everything_for=everything_for,
            progress=progress,
        )
    show(record, as_json, terminal.plan)


@takes_request
def grow(
    model: Model,
    out: Out,
    request: GrowRequest,
    max_shard_size: MaxShardSize = "5GB",
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run.")] = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Grow a checkpoint into a deeper one."""
    from deepen.growth.grow import grow as run
    from deepen.report import terminal

    check_wish(push_to_hub, private)
    with terminal.progress_bar() as progress:
        record = run(
            model,
            out,
            request,
            revision=revision,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    show(record, as_json, terminal.growth)
    fulfil_wish(push_to_hub, private, out)


def verify(
    base: Annotated[str, typer.Argument(help="The checkpoint that was grown.", show_default=False)],
    grown: Annotated[
        Path, typer.Argument(help="The grown checkpoint, trained or not.", show_default=False)
    ],
    trained: Annotated[
        bool, typer.Option("--trained", help="It was trained by other means than deepen train.")
    ] = False,
    manifest: Annotated[
        str | None,
        typer.Option(
            "--manifest",
            metavar="SHA256",
            help="SHA-256 that its manifest must have, as grow told it.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to run both on, by default a built-in one.")
    ] = None,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="Token sequences.")] = 4,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens in each.")] = 64,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Prove that a grown checkpoint is what it claims; exit code 1 if it is not."""
    from deepen.report import terminal
    from deepen.verification.verify import verify as run

    with terminal.progress_bar() as progress:
        record = run(
            base,
            grown,
            trained=trained,
            manifest=manifest,
            text=read_text(text) if text else None,
            sequences=sequences,
            length=length,
            device=device,
            progress=progress,
        )
    show(record, as_json, terminal.verification)
    if not record.passed:
        raise typer.Exit(1)


def inspect(
    model: Model,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Measure how well neighbouring blocks align.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="TEXT",
            help="The same, and compare what blocks compute on this text.",
            show_default=False,
        ),
    ] = None,
    peft: Annotated[
        bool,
        typer.Option("--peft", help="Print the LoraConfig that gives only new blocks adapters."),
    ] = False,
    device: Device = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show a checkpoint's blocks, their lineage, and what is new."""
    from deepen.report import terminal
    from deepen.verification.inspect import inspect as run

    with terminal.progress_bar() as progress:
        record = run(
            model,
            revision=revision,
            alignment=alignment,
            calibration=calibration,
            peft=peft,
            device=device,
            progress=progress,
        )
    if record.peft and not as_json:
        typer.echo(_lora_config(record.peft))
    else:
        show(record, as_json, terminal.inspection)


def _lora_config(targets: "PeftTargets") -> str:
    """Write Python that makes peft's config; what is not needed is left out."""
    given = {
        key: value
        for key, value in targets.model_dump().items()
        if value or key == "target_modules"
    }
    lines = [f"    {key}={value!r}," for key, value in given.items()]
    return "\n".join(["LoraConfig(", *lines, ")"])


def methods(as_json: Json = False) -> None:
    """List the growth methods and their options."""
    from deepen import methods as table
    from deepen.report.methods import method_table

    all_methods = [table.get(name) for name in table.names()]
    if as_json:
        schemas = {method.name: method.options.model_json_schema() for method in all_methods}
        typer.echo(json.dumps(schemas, indent=2))
    else:
        console().print(method_table(all_methods))
