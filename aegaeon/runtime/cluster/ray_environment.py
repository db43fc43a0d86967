"""The environment in which a service, its Ray and its libraries run, settled before any of them is imported.

Ray takes every setting from variables, and finds its token, as other libraries their caches, in the home folder. A Ray
of our own must heed nothing that was meant for another one, must be reached from this machine only and must ask for its
token; none of it needs a home folder or a name for the user.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, MutableMapping

from aegaeon.runtime.process.run_folder import RunFolder
from aegaeon.settings.cache_dir import home_folder

_PRIVATE_RAY = {
    "RAY_AUTH_MODE": "token",
    # Ray's own switch for listening on the loopback interface only, whatever the name says.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray would have its processes wait for everybody else's (niceness 15): instances and drivers are what serves.
    "RAY_worker_niceness": "0",
    # Where memory runs short Ray would kill processes of its own, whoever took it. A pool takes its own at its start.
    "RAY_memory_monitor_refresh_ms": "0",
    # Older versions hide all GPUs from actors that ask for none of Ray's count.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_NEEDED_PROXY_EXCEPTIONS = ("127.0.0.1", "localhost", "::1")
_USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def settle_environment(environment: MutableMapping[str, str], folder: RunFolder, *, private_ray: bool) -> None:
    """Change ``environment`` (the process's own) for a service; its child processes inherit it.

    ``private_ray``: the service starts a Ray of its own; else it joins one, to which the variables given belong.
    """
    _settle_home(environment, folder)
    _settle_proxies(environment)
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.home))  # importing torch makes this folder
    if private_ray:
        for name in [name for name in environment if name.startswith("RAY_")]:
            del environment[name]
        environment.update(_PRIVATE_RAY)
        environment["RAY_AUTH_TOKEN_PATH"] = str(folder.token)
        return
    environment.setdefault("RAY_COLOR_PREFIX", "0")
    environment.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")  # seconds in which a cluster must answer
    if "RAY_AUTH_MODE" not in environment and _has_token(environment):
        environment["RAY_AUTH_MODE"] = "token"  # Ray looks for it by itself only where it looks for the address, too


def _settle_home(environment: MutableMapping[str, str], folder: RunFolder) -> None:
    """Libraries write to the home folder without asking; one that takes nothing is replaced for this run."""
    home = home_folder(environment)
    if home is None or not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
        environment["HOME"] = str(folder.home)
    if not any(environment.get(name) for name in _USER_VARIABLES) and not _has_passwd_entry():
        environment["USER"] = f"uid{os.getuid()}"


def _has_passwd_entry() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _settle_proxies(environment: MutableMapping[str, str]) -> None:
    """A proxy must not be asked for the way to this machine."""
    if not any(name.lower().endswith("_proxy") for name in environment):
        return
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = dict.fromkeys([*filter(None, map(str.strip, given.split(","))), *_NEEDED_PROXY_EXCEPTIONS])
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)


def _has_token(environment: Mapping[str, str]) -> bool:
    """Whether Ray would find a token: in these variables, or where ``ray get-auth-token`` puts it."""
    if environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"):
        return True
    home = home_folder(environment)
    return home is not None and (home / ".ray" / "auth_token").is_file()
