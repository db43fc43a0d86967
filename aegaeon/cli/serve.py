"""``aegaeon serve``: read the settings, run the service, show what it reports.

Does not know: how the service runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aegaeon.cli.gpus import machine_with_gpus
from aegaeon.cli.logs import configure_logs, our_level
from aegaeon.cli.serve_console import ServeConsole
from aegaeon.core.config import PoolConfig
from aegaeon.runtime.log_reader import LogWatch
from aegaeon.runtime.process_log import LogPlace
from aegaeon.runtime.ray_environment import settle_environment
from aegaeon.runtime.run_folder import RunFolder
from aegaeon.settings.load import load_settings

_OTHERS = 0o077  # the bits of a file mode that are not its owner's


def serve(models: Sequence[str], file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str]) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code: 0, or 130 where that came before the pool was ready."""
    _allow_own_files()
    _leave_missing_folder()
    config = load_settings(models, file, flags, environment, machine_with_gpus())
    console = ServeConsole()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), _surroundings(config) as folder:
        from aegaeon.cli.service import run_service  # brings in torch and Ray, after they were told to be quiet

        run_service(config, console.report, folder, _log_place(config, folder))
    return 0 if console.ready else 130


@contextlib.contextmanager
def _surroundings(config: PoolConfig) -> Iterator[RunFolder]:
    """What a service needs around it: a folder of its own, an environment, logs.

    Nothing of it stays, but after trouble the logs do; then standard error says where they are.
    """
    folder = RunFolder.create(os.environ)
    watch = LogWatch(folder.logs, _say)
    try:
        settle_environment(os.environ, folder, private_ray=config.ray_address is None)
        configure_logs(config.log_file)
        with watch:
            yield folder
    finally:
        _clear(folder, keep_logs=watch.trouble)


def _clear(folder: RunFolder, *, keep_logs: bool) -> None:
    kept = folder.keep_logs() if keep_logs else None
    folder.remove()
    if kept is not None:
        _say(f"the logs of the service's processes are kept in {kept}")


def _log_place(config: PoolConfig, folder: RunFolder) -> LogPlace:
    """A Ray that is not ours brings warnings to us by itself; it may be on other machines."""
    if config.ray_address is None or config.log_file is not None:
        return LogPlace(config.log_file, folder.logs, our_level())
    return LogPlace(level=logging.WARNING)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _allow_own_files() -> None:
    """Whatever the mask of file modes says, processes of the service must read what others of them write."""
    mask = os.umask(_OTHERS)
    os.umask(mask & _OTHERS)


def _leave_missing_folder() -> None:
    """A working folder that was deleted is no place to start processes in."""
    try:
        Path.cwd()
    except OSError:
        os.chdir("/")
