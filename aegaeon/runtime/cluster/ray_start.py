"""Ray, started for one service alone or joined; whatever it fails of is told in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import shutil
import signal
from pathlib import Path

import ray

from aegaeon.core.service import ServiceError
from aegaeon.runtime.cluster.last_line import last_line
from aegaeon.runtime.cluster.ray_address import current_cluster, local_raylets, resolve_address
from aegaeon.runtime.process.process import children
from aegaeon.runtime.process.process_log import ProcessFormatter
from aegaeon.runtime.process.run_folder import RunFolder

logger = logging.getLogger(__name__)

# Ray insists on an object store; no tensor of ours passes through it.
_OBJECT_STORE_BYTES = 80 << 20
_SHARED_MEMORY = Path("/dev/shm")
# Ray gives its own start up after 30 s, which a machine with much else to do may need.
_TRIES = 5
# Without them nothing is started or heard of any more; the others are agents.
_RAY_PROCESSES = ("raylet", "gcs_server")
_TOO_SLOW = re.compile("timed out|failed to connect to gcs|deadline exceeded", re.IGNORECASE)


def start_private_ray(folder: RunFolder) -> None:
    """Start a Ray on this machine's loopback interface, with its files and its token in ``folder``.

    The environment is settled (``settle_environment``). Raises ``ServiceError``.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            _init_private_ray(folder)
        except Exception as error:  # Ray raises whatever its parts do, a bare ``Exception`` too
            ray.shutdown()
            _end_processes(folder)
            if tries_left and _TOO_SLOW.search(str(error)):
                logger.info("Ray starts too slowly and is started again: %s", last_line(error))
                continue
            _note_failure(folder, error)
            raise ServiceError(
                f"Ray does not start: {last_line(error)}; `aegaeon doctor` looks for the cause"
            ) from error
        return


def wait_until_ray_ends() -> str:
    """Blocks until one of the processes that make a private Ray has ended; says which.

    To be called in the process that started it.
    """
    names = {os.pidfd_open(pid): name for pid in children() if (name := _name(pid)) in _RAY_PROCESSES}
    poll = select.poll()
    for fd in names:
        poll.register(fd, select.POLLIN)
    ended = poll.poll()[0][0]
    for fd in names:
        os.close(fd)
    return f"Ray's process {names[ended]} has ended"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def _init_private_ray(folder: RunFolder) -> None:
    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=0,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        _temp_dir=str(folder.ray),
        _plasma_directory=str(_object_store_place(folder)),
    )


def _end_processes(folder: RunFolder) -> None:
    """A start that fails leaves some of Ray's processes running; each has the folder's path in its arguments."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if os.fsencode(f"{folder.ray}/") in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def _note_failure(folder: RunFolder, error: Exception) -> None:
    """Tells the operator, and has the logs kept: Ray's own ones tell more."""
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "Ray does not start: %s", (error,), None)
    (folder.logs / "ray.log").write_text(ProcessFormatter("ray").format(record) + "\n", encoding="utf-8")


def _object_store_place(folder: RunFolder) -> Path:
    """Shared memory where there is enough of it: a container may have none, or little."""
    try:
        free_bytes = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return folder.ray
    enough = free_bytes >= _OBJECT_STORE_BYTES and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
    return _SHARED_MEMORY if enough else folder.ray


def join_ray(asked: str) -> None:
    """Join the cluster at HOST:PORT, or the one that ``auto`` finds. Its nodes' output comes to standard error.

    Raises ``ServiceError``.
    """
    address = resolve_address(asked, os.environ, local_raylets(), current_cluster(os.environ))
    try:
        ray.init(address=address, configure_logging=False, log_to_driver=True)
    except Exception as error:  # Ray raises whatever its parts do, a bare ``Exception`` too
        raise ServiceError(_why_not_joined(address, error)) from error
    if os.environ.get("RAY_AUTH_MODE") != "token":
        logger.warning(
            "the Ray cluster at %s asks for no token: whoever reaches it can run programs on its nodes; "
            "start them with RAY_AUTH_MODE=token",
            address,
        )


def _why_not_joined(address: str, error: BaseException) -> str:
    reasons = [error]
    while (cause := reasons[-1].__cause__ or reasons[-1].__context__) is not None:
        reasons.append(cause)
    if any(isinstance(one, ray.exceptions.AuthenticationError) or "AuthToken" in str(one) for one in reasons):
        return (
            f"the Ray cluster at {address} asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
            "file that holds it"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return f"no Ray cluster answers at {address}: start one with `ray start --head`, or leave out --ray-address"
    return f"cannot join the Ray cluster at {address}: {last_line(error)}"
