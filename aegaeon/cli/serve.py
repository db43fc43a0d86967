"""``aegaeon serve``: read the settings, run the service, show what it reports.

Does not know: how the service runs.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from aegaeon.cli.gpus import machine_with_gpus
from aegaeon.cli.logs import our_level
from aegaeon.cli.serve_console import ServeConsole
from aegaeon.cli.surroundings import settle_process, surroundings
from aegaeon.runtime.process_log import place_logs
from aegaeon.settings.load import load_settings


def serve(models: Sequence[str], file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str]) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code: 0, or 130 where that came before the pool was ready."""
    settle_process()
    config = load_settings(models, file, flags, environment, machine_with_gpus())
    console = ServeConsole()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), surroundings(config) as folder:
        from aegaeon.cli.service import run_service  # brings in torch and Ray, after they were told to be quiet

        run_service(config, console.report, folder, place_logs(config, folder, our_level()))
    return 0 if console.ready else 130
