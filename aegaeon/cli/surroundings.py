"""What a service needs around it: a folder of its own, an environment, a log that shows what its processes say."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from aegaeon.cli.terminal.logs import configure_logs
from aegaeon.core.config import PoolConfig
from aegaeon.descriptors import raise_file_limit
from aegaeon.runtime.cluster.ray_environment import settle_environment
from aegaeon.runtime.process.log_reader import LogWatch
from aegaeon.runtime.process.run_folder import RunFolder

_OTHERS = 0o077  # the bits of a file mode that are not its owner's


def settle_process() -> None:
    """Make this process fit to start a service, before anything is read or written."""
    # Whatever the mask of file modes says, processes of the service must read what others of them write.
    mask = os.umask(_OTHERS)
    os.umask(mask & _OTHERS)
    try:
        Path.cwd()
    except OSError:  # a working folder that was deleted is no place to start processes in
        os.chdir("/")


@contextlib.contextmanager
def surroundings(config: PoolConfig) -> Iterator[RunFolder]:
    """The service's folder; this process's environment is settled, and its log configured, from here on.

    Nothing of it stays, but after trouble the logs do; then standard error says where they are. Raises
    ``ServiceError``.
    """
    raise_file_limit(config)
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
    kept = None
    if keep_logs:
        with contextlib.suppress(OSError):  # the folder has gone, or the disk is full
            kept = folder.keep_logs()
    folder.remove()
    if kept is not None:
        _say(f"the logs of the service's processes are kept in {kept}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
