"""``deepen widen``: what one would do instead of growing deeper."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepen.cli.options import (
    Device,
    Json,
    MaxShardSize,
    Model,
    Out,
    Overwrite,
    Revision,
    Seed,
    show,
)
from deepen.common.errors import DeepenError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from deepen.records.growth import WidenRecord
    from deepen.records.verification import Check


def widen(
    model: Model,
    out: Out,
    neurons: Annotated[
        int | None, typer.Option("--neurons", min=1, help="New neurons in every FFN.")
    ] = None,
    as_new_layers: Annotated[
        int | None,
        typer.Option(
            "--as-new-layers",
            metavar="N",
            min=1,
            help="Instead: at most as many new parameters as N new blocks have.",
        ),
    ] = None,
    seed: Seed = 0,
    max_shard_size: MaxShardSize = "5GB",
    overwrite: Overwrite = False,
    device: Device = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Grow in width instead: more neurons in every FFN, the function kept."""
    from deepen.base.model import open_model
    from deepen.common import device as devices
    from deepen.growth.widen import widen as run
    from deepen.planning.partial import wider_neurons
    from deepen.report import terminal
    from deepen.verification.widened import prove_widened

    if (neurons is None) == (as_new_layers is None):
        raise DeepenError("Say how much wider: either --neurons N or --as-new-layers N.")
    if neurons is None:
        base = open_model(model, revision)
        neurons = wider_neurons(base, (as_new_layers or 0) * base.parameters_of(0))
    devices.choose(device)  # before anything is written
    with terminal.progress_bar() as progress:
        record = run(
            model,
            out,
            neurons,
            seed=seed,
            revision=revision,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            progress=progress,
        )
        proof = prove_widened(model, out, revision=revision, device=device, progress=progress)
    show(record, as_json, lambda widened: _widened(widened, proof))
    if not proof.passed:
        raise typer.Exit(1)


def _widened(record: "WidenRecord", proof: "Check") -> "Group":
    """Show what was done, and how it is trained."""
    from rich.console import Group

    from deepen.report import terminal

    before = record.width - record.neurons
    share = record.new_parameters / record.parameters
    rows: list[tuple[str, str | Text]] = [
        ("base", f"{record.base.name} ({record.base.fingerprint[:12]})"),
        ("FFNs", f"{before:,} → {record.width:,} neurons"),
        ("parameters", f"{record.base_parameters:,} → {record.parameters:,}"),
        ("to train", f"{record.new_parameters:,} ({share:.1%}), by neurons: {record.neurons}"),
        ("written to", record.out),
    ]
    return Group(terminal.facts(rows), terminal.checks([proof]))
