"""``aegaeon serve``: read the settings, run the service, show what it reports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from aegaeon.cli.gpus import machine_with_gpus
from aegaeon.cli.service.serve_console import ServeConsole
from aegaeon.cli.service.service import listen, run_service
from aegaeon.cli.surroundings import settle_process, surroundings
from aegaeon.cli.terminal.logs import our_level
from aegaeon.runtime.process.process_log import place_logs
from aegaeon.runtime.process.run_folder import remove_abandoned
from aegaeon.settings.load import read_settings


def serve(models: Sequence[str], file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str]) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code: 0, or 130 where that came before the pool was ready, or twice.

    What can be wrong is told in the order of how soon it can be known: settings, a busy port, the machine.
    """
    settle_process()
    settings = read_settings(models, file, flags, environment)
    console = ServeConsole()
    with listen(settings.config) as sock:
        config = settings.settle(machine_with_gpus())
        remove_abandoned(os.environ)
        with surroundings(config) as folder:
            run_service(config, sock, console.report, folder, place_logs(config, folder, our_level()))
    return 0 if console.ready else 130
