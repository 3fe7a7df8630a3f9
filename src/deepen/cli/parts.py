"""``deepen pack``, ``attach``, ``shrink``, ``combine`` and ``reproduce``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deepen.cli.options import Json, MaxShardSize, Out, Overwrite, Revision, show

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from deepen.records.pack import AssemblyRecord, PackRecord, ReproduceRecord

Grown = Annotated[
    Path, typer.Argument(help="The grown checkpoint, trained or not.", show_default=False)
]
Base = Annotated[str, typer.Argument(help="The checkpoint that was grown.", show_default=False)]
Growths = Annotated[
    int | None,
    typer.Option("--growths", min=1, help="Take off the latest N growths, by default all."),
]


def pack(
    grown: Grown,
    out: Annotated[Path, typer.Argument(metavar="PACK", help="Folder to write.")],
    growths: Growths = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take the new blocks off a grown checkpoint: what it holds and its base does not."""
    from deepen.packs.pack import pack as run
    from deepen.report import terminal

    with terminal.progress_bar() as progress:
        record = run(grown, out, growths=growths, overwrite=overwrite, progress=progress)
    show(record, as_json, lambda packed: _packed(packed, out))


def attach(
    base: Base,
    pack: Annotated[Path, typer.Argument(help="The pack.", show_default=False)],
    out: Out,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put a pack back on its base: the grown checkpoint, byte for byte."""
    from deepen.packs.attach import attach as run
    from deepen.report import terminal

    with terminal.progress_bar() as progress:
        record = run(base, pack, out, revision=revision, overwrite=overwrite, progress=progress)
    show(record, as_json, _assembled)


def shrink(
    grown: Grown,
    out: Out,
    growths: Growths = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also if training changed what is kept of the base.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take the new blocks off and write the base, bit for bit."""
    from deepen.packs.shrink import shrink as run
    from deepen.report import terminal

    with terminal.progress_bar() as progress:
        record = run(
            grown, out, growths=growths, force=force, overwrite=overwrite, progress=progress
        )
    show(record, as_json, _assembled)


def combine(
    base: Base,
    pack_a: Annotated[Path, typer.Argument(help="A pack, lower in each gap.", show_default=False)],
    pack_b: Annotated[Path, typer.Argument(help="Another of the same base.", show_default=False)],
    out: Out,
    how: Annotated[
        Literal["interleave", "average"],
        typer.Option(
            "--how", help="Both sets of blocks, or the mean of each pair, which needs one plan."
        ),
    ],
    max_shard_size: MaxShardSize = "5GB",
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put the new blocks of two packs on the base that both were grown from."""
    from deepen.packs.combine import combine as run
    from deepen.report import terminal

    with terminal.progress_bar() as progress:
        record = run(
            base,
            pack_a,
            pack_b,
            out,
            how=how,
            revision=revision,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            progress=progress,
        )
    show(record, as_json, _assembled)


def reproduce(
    grown: Grown,
    base: Annotated[
        str | None,
        typer.Option("--base", help="What was grown, by default what the lineage names."),
    ] = None,
    revision: Revision = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where to compute, by default as recorded.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the recorded growth again and compare all bytes; exit code 1 if they differ."""
    from deepen.packs.reproduce import reproduce as run
    from deepen.report import terminal

    with terminal.progress_bar() as progress:
        record = run(grown, base=base, revision=revision, device=device, progress=progress)
    show(record, as_json, _reproduced)
    if not record.passed:
        raise typer.Exit(1)


def _packed(record: "PackRecord", out: Path) -> "Group":
    """Show a pack."""
    from rich.console import Group

    from deepen.report import terminal

    share = record.weight_bytes / record.grown_weight_bytes
    weights = f"{terminal.size(record.weight_bytes)} ({share:.0%} of the grown checkpoint's)"
    rows: list[tuple[str, str | Text]] = [
        ("pack of", record.name),
        ("fits on", f"{record.base.name} ({record.base.fingerprint[:12]})"),
        ("stack", terminal.stack(len(record.plan), record.new_blocks)),
        ("weights", weights),
        ("written to", str(out)),
    ]
    if record.changed:
        rows.append(("note", f"{len(record.changed)} trained tensors of the base are in it too."))
    return Group(terminal.facts(rows))


def _assembled(record: "AssemblyRecord") -> "Group":
    """Show what was assembled."""
    from rich.console import Group

    from deepen.report import terminal

    rows: list[tuple[str, str | Text]] = [
        ("model", record.name),
        ("stack", terminal.stack(record.blocks, record.new_blocks)),
        ("weights", terminal.size(record.weight_bytes)),
        ("proof", record.proof),
        ("written to", record.out),
        *(("note", note) for note in record.notes),
    ]
    return Group(terminal.facts(rows))


def _reproduced(record: "ReproduceRecord") -> "Group":
    """Show what was made again."""
    from rich.console import Group
    from rich.text import Text

    from deepen.report import terminal

    verdict = "grows again to the same bytes" if record.passed else "does not grow again as it is"
    notes = [("note", note) for note in record.notes]
    return Group(
        terminal.checks(record.checks),
        terminal.facts([*notes]),
        Text(
            f"{record.grown} {verdict}, from {record.base.name} by {record.method}.",
            "bold green" if record.passed else "bold red",
        ),
    )
