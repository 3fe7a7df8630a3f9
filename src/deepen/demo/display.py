"""What the terminal shows while the demo works."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepen.methods.base import Progress as Report


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """Show one bar for the stage at hand; a share that falls starts the next stage."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task, last = bars.add_task("starting", total=1.0), 0.0

        def report(stage: str, share: float) -> None:
            nonlocal last
            if share < last:
                bars.reset(task, total=1.0)
            bars.update(task, completed=share, description=stage)
            last = share

        yield report


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off the bars with which transformers loads and saves every checkpoint."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
