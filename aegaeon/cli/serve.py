"""``aegaeon serve``: read the settings, run the service, show what it reports.

Does not know: how the service runs.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from aegaeon.cli.gpus import machine_with_gpus
from aegaeon.cli.logs import configure_logs
from aegaeon.cli.serve_console import ServeConsole
from aegaeon.settings.load import load_settings


def serve(models: Sequence[str], file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str]) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code: 0, or 130 where that came before the pool was ready."""
    config = load_settings(models, file, flags, environment, machine_with_gpus())
    configure_logs(config.log_file)
    console = ServeConsole()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        from aegaeon.cli.service import run_service  # brings in torch and Ray, after they were told to be quiet

        run_service(config, console.report)
    return 0 if console.ready else 130
