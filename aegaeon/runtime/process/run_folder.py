"""The one private folder of a running service: Ray's files and token, sockets, logs.

Only its owner can enter it, its path is short enough for Ray's sockets, and a lock that ends with its process tells the
folder of a running service from one that a killed service left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from aegaeon.core.service import ServiceError

# A Unix socket's path, without the zero at its end.
_SOCKET_PATH_BYTES = 107
# The longest that Ray appends to its folder: the time with microseconds, and a pid of up to seven digits.
_RAY_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_RAY, _LOGS, _HOME, _TOKEN, _LOCK = "ray", "logs", "home", "auth_token", "lock"
# What Ray and the logs of a short run take.
_LEAST_FREE_BYTES = 32 << 20
_LONGEST_NAME = "aegaeon-4194304-000000"
_NAME = re.compile(r"aegaeon-\d+-[0-9a-f]{6}")
_MAKING_S = 3600.0
_KEPT_PREFIX = "aegaeon-failed-"


class RunFolder:
    """A folder of mode 0700 that its maker holds until ``remove`` or ``keep_logs``; processes that it starts have it as
    ``RunFolder(path)``."""

    def __init__(self, path: Path, lock_fd: int | None = None) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, environment: Mapping[str, str]) -> RunFolder:
        """Make one in the first place that will do: ``$XDG_RUNTIME_DIR``, ``$TMPDIR``, ``/tmp``, ``/var/tmp``,
        ``/dev/shm``.

        Raises ``ServiceError``, which says of each place why it will not do.
        """
        reasons = []
        for parent in places(environment):
            try:
                return cls._create_in(parent)
            except OSError as error:
                reasons.append(f"{parent}: {error.strerror or error}")
        raise ServiceError(
            "no folder for the service's own files (Ray's sockets, its token, logs): "
            f"{'; '.join(reasons)}; set TMPDIR to a short folder that can be written to"
        )

    @classmethod
    def _create_in(cls, parent: Path) -> RunFolder:
        _check_length(parent)
        _check_space(parent)
        path = parent / f"aegaeon-{os.getpid()}-{secrets.token_hex(3)}"
        path.mkdir(mode=0o700)
        try:
            path.chmod(0o700)  # whatever the umask took away
            lock_fd = _lock(path)
            for name in (_RAY, _LOGS, _HOME):
                (path / name).mkdir(mode=0o700)
                (path / name).chmod(0o700)
            _write_token(path / _TOKEN)
            _try_socket(path / "socket")
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return cls(path, lock_fd)

    @property
    def ray(self) -> Path:
        """Ray's temporary folder."""
        return self.path / _RAY

    @property
    def logs(self) -> Path:
        """What the service's processes have to say, a file for each."""
        return self.path / _LOGS

    @property
    def home(self) -> Path:
        """A home folder for libraries whose user has none that can be written to."""
        return self.path / _HOME

    @property
    def token(self) -> Path:
        """The file of the secret that Ray's processes show each other, mode 0600."""
        return self.path / _TOKEN

    def remove(self) -> None:
        """Delete everything; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def keep_logs(self) -> Path | None:
        """Delete everything but the logs, Ray's too, which move to a folder that no later service removes; returns it.

        None where nobody wrote any. Raises ``OSError`` where they cannot be moved.
        """
        if not any((*self.logs.iterdir(), *self.ray.iterdir())):
            self.remove()
            return None
        kept = self.path.with_name(_KEPT_PREFIX + self.path.name.removeprefix("aegaeon-"))
        self.logs.rename(kept)
        for session in self.ray.glob("session_2*"):
            with contextlib.suppress(FileNotFoundError):
                (session / _LOGS).rename(kept / session.name)
        self.remove()
        return kept

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def is_private_ray(temp_dir: Path) -> bool:
    """Whether Ray's temporary folder is that of a service's own Ray, which is nobody else's to join."""
    return temp_dir.name == _RAY and _NAME.fullmatch(temp_dir.parent.name) is not None


def places(environment: Mapping[str, str]) -> list[Path]:
    """Where a service's folder may be, best first; absolute, each once."""
    given = [environment.get(name, "") for name in ("XDG_RUNTIME_DIR", "TMPDIR")]
    return list(
        dict.fromkeys(Path(place) for place in (*given, "/tmp", "/var/tmp", "/dev/shm") if place.startswith("/"))
    )


def remove_abandoned(environment: Mapping[str, str]) -> list[Path]:
    """Remove this user's folders whose service was killed; the removed ones."""
    removed = []
    for parent in places(environment):
        with contextlib.suppress(OSError):  # a place that is not there, or not readable
            for path in sorted(parent.iterdir()):
                if _NAME.fullmatch(path.name) and _is_abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)
                    removed.append(path)
    return removed


def _is_abandoned(path: Path) -> bool:
    """Whether the folder is ours and nobody holds its lock.

    Without a lock it is being made, which takes a moment, or a process of a killed service has written into it after it
    was removed.
    """
    try:
        found = path.lstat()
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            return False
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return time.time() - found.st_mtime > _MAKING_S
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lock(path: Path) -> int:
    """Take the folder's lock before anybody can see its file: a folder with a lock file that is free is abandoned."""
    unseen = path / f"{_LOCK}.new"
    descriptor = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unseen.rename(path / _LOCK)
    return descriptor


def _check_length(parent: Path) -> None:
    longest = f"{parent}/{_LONGEST_NAME}/{_RAY}{_RAY_SOCKET}"
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, "its path is too long for the sockets in it")


def _check_space(parent: Path) -> None:
    if shutil.disk_usage(parent).free < _LEAST_FREE_BYTES:
        raise OSError(errno.ENOSPC, "less than 32 MiB are free")


def _write_token(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, 0o600)
        file.write(secrets.token_hex(32))


def _try_socket(path: Path) -> None:
    """Some file systems have none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.bind(str(path))
    path.unlink()
