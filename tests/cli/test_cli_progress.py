"""How far a measurement is, where nobody watches: lines in a log."""

from __future__ import annotations

import io

from rich.console import Console

from aegaeon.cli.terminal.progress import progress_on


def test_a_log_gets_a_line_for_every_tenth() -> None:
    written = io.StringIO()
    with progress_on(Console(file=written), "starting an instance") as tell:
        for done in range(101):
            tell(done, 100, f"model-{done // 50}")
    lines = written.getvalue().splitlines()
    assert lines[:2] == ["starting an instance ...", "0 of 100: model-0"]
    assert lines[-1] == "100 of 100: model-2"
    assert len(lines) == 12
