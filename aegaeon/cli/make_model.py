"""``aegaeon make-model``: make a small model, show how it learns, say what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from aegaeon.cli.terminal.console import make_console
from aegaeon.cli.terminal.logs import configure_logs
from aegaeon.settings.error import SettingsError
from aegaeon.settings.sizes import format_bytes, format_count
from aegaeon.toy_models.model_request import MakeModelError, ModelSizes, check_request


def make(
    architecture: str,
    directory: Path,
    sizes: Mapping[str, int | None],
    dtype: str,
    seed: int,
    learn: Path | None,
    steps: int,
) -> None:
    """Make the model; raises ``SettingsError`` where it cannot be made as asked."""
    configure_logs(None)
    try:
        asked = ModelSizes(**sizes)  # type: ignore[arg-type]
        check_request(directory, dtype, learn, steps)  # now: the import below takes a while
    except MakeModelError as error:
        raise SettingsError(str(error)) from error
    from aegaeon.toy_models.make_model import MadeModel, make_model

    def attempt(bar: Progress) -> MadeModel:
        task = bar.add_task("learning", total=steps, visible=learn is not None, loss="")
        return make_model(
            architecture,
            directory,
            asked,
            dtype=dtype,
            seed=seed,
            learn=learn,
            steps=steps,
            progress=lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.3f}"),
        )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    try:
        with Progress(*columns, console=make_console(stderr=True), transient=True) as bar:
            made = attempt(bar)
    except MakeModelError as error:
        raise SettingsError(str(error)) from error
    typer.echo(
        f"{made.directory}: {made.architecture}, {format_count(made.parameters)} parameters, "
        f"{format_bytes(made.weight_bytes)} of {made.dtype}, in {made.seconds:.1f} s"
    )
    if made.lesson is not None:
        typer.echo(_learnt(made.lesson.recall, made.lesson.steps))
    typer.echo(f"serve it: aegaeon serve {made.directory.name}={made.directory}")


def _learnt(recall: float, steps: int) -> str:
    if recall == 1.0:
        return f"it knows the text by heart, after {steps} steps"
    return f"it knows the text after {recall:.0%} of questions only: allow more than {steps} --steps, or larger sizes"
