"""Shows a person what the service reports: a table of models, where it listens, when it is ready.

Standard output gets one line, ``ready URL``, for programs to wait for; all else goes to standard error.
"""

from __future__ import annotations

from typing import assert_never

import typer
from rich.markup import escape
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from aegaeon.core.service import (
    InstanceStarted,
    ListeningOn,
    ModelFound,
    ModelRefused,
    ProcessDied,
    Ready,
    ServiceReport,
    Stopping,
)
from aegaeon.settings.sizes import format_bytes, format_count

_COLUMNS = ("model", "architecture", "parameters", "weights", "dtype", "KV per token", "context", "note")


class ServeConsole:
    """Collects models until something else is reported, so that they come as one table."""

    def __init__(self) -> None:
        self._console = make_console(stderr=True)
        self._found: list[ModelFound] = []
        self.ready = False

    def report(self, report: ServiceReport) -> None:
        """Show one report; safe to call until the process ends."""
        match report:
            case ModelFound():
                self._found.append(report)
                return
            case ModelRefused():
                self._say(
                    f"[red]not served: {escape(report.name)}[/] ({escape(str(report.path))}): {escape(report.reason)}"
                )
                return
            case _:
                self._show_models()
        match report:
            case InstanceStarted():
                self._say(
                    f"instance {report.instance_id}: {report.role}, {report.device}, "
                    f"{report.threads} thread{'s' * (report.threads != 1)}, process {report.pid}"
                )
            case ListeningOn():
                self._say(f"listening on {report.url}")
            case Ready():
                self._announce(report.url)
            case ProcessDied():
                self._say(
                    f"[red]the {report.name} process died[/]: {escape(report.reason)}; "
                    f"another starts in {report.pause_s:.1f} s"
                )
            case Stopping():
                self._say("stopping")
            case _:
                assert_never(report)

    def _announce(self, url: str) -> None:
        """The one line that programs wait for; once, whatever is reported."""
        if self.ready:
            self._say(f"ready again at {url}")
        else:
            self.ready = True
            typer.echo(f"ready {url}")

    def _show_models(self) -> None:
        if not self._found:
            return
        table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
        for model in self._found:
            table.add_row(*map(escape, _row(model)))
        self._console.print(table)
        self._found.clear()

    def _say(self, text: str) -> None:
        self._console.print(text)


def _row(model: ModelFound) -> tuple[str, ...]:
    return (
        model.name,
        model.architecture,
        format_count(model.parameters),
        format_bytes(model.weight_bytes),
        model.dtype,
        format_bytes(model.kv_token_bytes),
        f"{model.max_context_tokens:,}",
        model.note,
    )
