"""Options that several subcommands share."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Checkpoint folder, or hub id.", show_default=False)]
MethodName = Annotated[
    str, typer.Option("--method", "-m", help="Growth method; `deepen methods` lists them.")
]
NewLayers = Annotated[
    int | None,
    typer.Option("--new-layers", "-n", help="Number of new blocks. [default: half of the base's]"),
]
PlacementName = Annotated[
    str | None,
    typer.Option(
        "--placement",
        "-p",
        help="top, middle, bottom, top-bottom, uniform, quality or after:3,4,5. "
        "[default: the method's own]",
    ),
]
PerGap = Annotated[int, typer.Option("--per-gap", help="How many new blocks a gap may take.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="One of the method's own options."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda, cuda:1.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
