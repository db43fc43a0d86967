"""How a child process of a service begins and ends."""

from __future__ import annotations

import contextlib
import importlib
import signal
import socket
import sys
import threading
from typing import NoReturn

from aegaeon.cli.service.channel import BEAT_S, Beat, BlockingChannel, ChildFailed, EndKind
from aegaeon.cli.terminal.logs import configure_logs
from aegaeon.core.service import ServiceDiedError, ServiceError
from aegaeon.runtime.process.process import die_with_parent, set_name


def main(module: str, channel_fd: int, parent_pid: int, *inherited: int) -> NoReturn:
    """Run ``module.run`` as the child of a supervisor and exit; where it fails, the supervisor is told why."""
    die_with_parent(parent_pid)
    set_name(sys.argv[-1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = BlockingChannel(socket.socket(fileno=channel_fd))
    channel.send(Beat())
    begin = channel.receive()
    try:
        configure_logs(begin.config.log_file)
        _hide_torch()
        # Only now: it brings in what had to be told to be quiet.
        importlib.import_module(module).run(channel, begin, *inherited)
    except ServiceDiedError as error:
        _tell(channel, ChildFailed(str(error), EndKind.DEATHS))
        sys.exit(3)
    except ServiceError as error:
        _tell(channel, ChildFailed(str(error), EndKind.MISTAKE))
        sys.exit(2)
    except Exception as error:  # noqa: BLE001 -- the last resort: every bug ends here, written to a log
        from aegaeon.cli.terminal.failure import report_bug

        report_bug(error)
        _tell(channel, ChildFailed(f"unexpected {type(error).__name__}: {error}", EndKind.BUG))
        sys.exit(1)
    sys.exit(0)


def _hide_torch() -> None:
    """Neither child computes anything: where torch cannot be imported, Transformers makes tokenizers without it."""
    sys.modules["torch"] = None  # type: ignore[assignment]


def _tell(channel: BlockingChannel, failure: ChildFailed) -> None:
    with contextlib.suppress(OSError):  # nobody is left to be told
        channel.send(failure)


def beat_from_thread(channel: BlockingChannel) -> None:
    """Say again and again that this process is alive."""

    def beat() -> None:
        pause = threading.Event()
        with contextlib.suppress(OSError):  # the supervisor has ended, and so do we
            while not pause.wait(BEAT_S):
                channel.send(Beat())

    threading.Thread(target=beat, name="beat", daemon=True).start()
