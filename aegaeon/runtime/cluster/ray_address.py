"""Which Ray cluster ``--ray-address`` means: never the private one of a service.

Ray's own ``auto`` takes any Ray that runs on the machine, and a service's is one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.service import ServiceError
from aegaeon.runtime.process.run_folder import is_private_ray

AUTO = "auto"
_ADDRESS_VARIABLE = "RAY_ADDRESS"
_ADDRESS = re.compile(r"([^:/\s]+|\[[0-9a-fA-F:]+\]):\d+")
_START = "start one with `ray start --head`, or leave out --ray-address"


@dataclass(frozen=True, slots=True)
class Raylet:
    """A Ray node of this machine: where its cluster answers (HOST:PORT), and its temporary folder.

    ``started``: it was started by ``ray start``, for others to join, and not by a program for itself.
    """

    address: str
    temp_dir: Path
    started: bool = True


def resolve_address(asked: str, environment: Mapping[str, str], raylets: Sequence[Raylet], current: str | None) -> str:
    """The cluster's HOST:PORT. ``auto`` is ``$RAY_ADDRESS``, else the cluster that runs on this machine.

    ``raylets``: those of this machine; ``current``: what ``ray start`` noted last. Raises ``ServiceError`` where there
    is no cluster, a choice of several, or only what cannot be joined.
    """
    given = environment.get(_ADDRESS_VARIABLE, "") if asked == AUTO else asked
    private = {raylet.address for raylet in raylets if is_private_ray(raylet.temp_dir)}
    address = given
    if given in ("", AUTO):
        others = [raylet for raylet in raylets if raylet.address not in private]
        started = {raylet.address for raylet in others if raylet.started}
        address = _choose(started or {raylet.address for raylet in others}, current)
    if not _ADDRESS.fullmatch(address):
        raise ServiceError(f"'{address}' is no address of a Ray cluster: give --ray-address as HOST:PORT")
    if address.replace("localhost:", "127.0.0.1:", 1) in private:
        raise ServiceError(f"the Ray at {address} belongs to another aegaeon service: {_START}")
    return address


def _choose(found: set[str], current: str | None) -> str:
    if current in found:
        return str(current)
    if not found:
        raise ServiceError(
            f"no Ray cluster runs on this machine (those that services keep to themselves do not count): {_START}"
        )
    if len(found) > 1:
        raise ServiceError(
            f"several Ray clusters run on this machine: choose by --ray-address {' or '.join(sorted(found))}"
        )
    return found.pop()


def local_raylets() -> list[Raylet]:
    """The Ray nodes that run on this machine, as far as this user can see."""
    return [raylet for process in Path("/proc").glob("[0-9]*") if (raylet := _raylet(process)) is not None]


def _raylet(process: Path) -> Raylet | None:
    try:
        command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return None
    if Path(command[0]).name != "raylet":
        return None
    flags = dict(word.lstrip("-").split("=", 1) for word in command[1:] if "=" in word)
    address, temp_dir = flags.get("gcs-address"), flags.get("temp_dir")
    if not (address and temp_dir):
        return None
    return Raylet(address, Path(temp_dir), started=_noted(Path(temp_dir)) == address)


def current_cluster(environment: Mapping[str, str]) -> str | None:
    """The address that ``ray start`` wrote down last, whether it still answers or not."""
    return _noted(Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp", "ray"))


def _noted(temp_dir: Path) -> str | None:
    """What ``ray start`` wrote into a temporary folder; a Ray that a program starts for itself writes nothing."""
    try:
        return (temp_dir / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
