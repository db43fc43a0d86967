"""``aegaeon doctor``: what this machine has for serving, and advice where something is missing."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import os
import platform
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from rich.table import Table

from aegaeon.cli.gpus import gpus
from aegaeon.cli.terminal.console import make_console
from aegaeon.core.config import InstanceConfig, ModelConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.service import ServiceError
from aegaeon.descriptors import needed, shortage
from aegaeon.runtime.process.run_folder import RunFolder
from aegaeon.settings.cache_dir import default_cache_dir
from aegaeon.settings.machine import OTHER_PROCESSES, PROCESS_BYTES, default_instances, read_machine
from aegaeon.settings.sizes import format_bytes

_LEAST_BYTES = (OTHER_PROCESSES + 1) * PROCESS_BYTES + (256 << 20)
_PROBE_BYTES = 4 << 20
_LEAST_RAY_BYTES = 128 << 20
_EXAMPLE_MODELS = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``broken``: nothing can be served until the advice is followed."""

    name: str
    value: str
    advice: str = ""
    broken: bool = False


def examine() -> list[Finding]:
    """Look at everything; takes seconds, because torch is imported."""
    return [look() for look in _LOOKS]


def show(findings: list[Finding]) -> None:
    """A table on standard output."""
    table = Table("", "", "found", "advice", box=None, pad_edge=False, header_style="bold")
    for finding in findings:
        mark = "[red]broken[/]" if finding.broken else "[yellow]note[/]" if finding.advice else "[green]ok[/]"
        table.add_row(finding.name, mark, finding.value, finding.advice)
    make_console().print(table)


def _python() -> Finding:
    return Finding("Python", platform.python_version())


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", f"install it: python -m pip install {name}", broken=True)


def _loader() -> Finding:
    try:
        module = importlib.import_module("quick_model_loader")
        return Finding("loader", f"quick_model_loader {module.__version__}")
    except (ImportError, AttributeError) as error:
        return Finding(
            "loader",
            f"not built ({error})",
            "build it, from the source tree: python -m pip install ./quick_model_loader (needs Rust)",
            broken=True,
        )


def _cores() -> Finding:
    machine = read_machine()
    return Finding("cores", f"{machine.cores} (instances by default: {default_instances(machine)})")


def _memory() -> Finding:
    machine = read_machine()
    limited = machine.group_bytes is not None and machine.group_bytes < machine.available_bytes
    value = f"{format_bytes(machine.room_bytes)} free{' in this control group' * limited}"
    if machine.room_bytes < _LEAST_BYTES:
        return Finding("memory", value, f"free some: {format_bytes(_LEAST_BYTES)} are needed at least", broken=True)
    return Finding("memory", value)


def _shared_memory() -> Finding:
    """Shared memory is memfd: it takes free memory, whatever the size of /dev/shm."""
    try:
        descriptor = os.memfd_create("aegaeon-doctor")
    except OSError as error:
        return Finding("shared memory", f"memfd: {error.strerror}", "allow memfd_create in this sandbox", broken=True)
    try:
        os.ftruncate(descriptor, _PROBE_BYTES)
        with mmap.mmap(descriptor, _PROBE_BYTES) as memory:
            memory[:: mmap.PAGESIZE] = b"\1" * (_PROBE_BYTES // mmap.PAGESIZE)
    except OSError as error:
        return Finding("shared memory", f"memfd: {error.strerror}", "free memory", broken=True)
    finally:
        os.close(descriptor)
    return Finding("shared memory", f"memfd works, up to {format_bytes(read_machine().room_bytes)}")


def _ray_memory() -> Finding:
    folder = Path("/dev/shm")
    free_bytes = shutil.disk_usage(folder).free if folder.is_dir() else 0
    small = free_bytes < _LEAST_RAY_BYTES
    where = ": Ray's store goes to the service's folder" if small else ""  # nothing of a request passes through it
    return Finding("/dev/shm (for Ray)", f"{format_bytes(free_bytes)} free{where}")


def _run_folder() -> Finding:
    try:
        folder = RunFolder.create(os.environ)
    except ServiceError as error:
        return Finding("service folder", "nowhere", str(error), broken=True)
    folder.remove()
    return Finding("service folder", f"in {folder.path.parent}")


def _cache_folder() -> Finding:
    """Where images are kept; models that need none are served without."""
    given = os.environ.get("AEGAEON_CACHE_DIR")
    folder = Path(given) if given else default_cache_dir(os.environ)
    if folder is None:
        return Finding("cache folder", "none: there is no home folder", "set --cache-dir to convert checkpoints")
    made = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    fit = made.is_dir() and os.access(made, os.W_OK | os.X_OK)
    advice = "" if fit else f"{made} cannot be written to: set --cache-dir to convert checkpoints"
    return Finding("cache folder", str(folder), advice)


def _open_files() -> Finding:
    """The soft limit does not matter: every process of a pool raises its own to the hard one."""
    need = needed(_example_pool())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "no limit")
    value = f"{hard} (of which {soft} without asking); {_EXAMPLE_MODELS} models need {need.least}, and clients one each"
    return Finding("open files", value, shortage(need, hard), broken=hard < need.least)


def _example_pool() -> PoolConfig:
    """A pool such as this machine would run by default."""
    models = tuple(ModelConfig(f"m{index}", Path()) for index in range(_EXAMPLE_MODELS))
    instances = (InstanceConfig(Role.MIXED, default_instances(read_machine())),)
    return PoolConfig(models=models, instances=instances)


def _gpu() -> Finding:
    from aegaeon.device.cuda.inventory import unseen_devices

    found, problem = gpus()
    if not found:
        return Finding("GPU", f"none ({problem}); models run on the CPU")
    names = [f"{gpu.name}, {format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free" for gpu in found]
    value = f"{'; '.join(names)}; driver for CUDA {found[0].driver_version}"
    return Finding("GPU", value, _cuda_advice() or unseen_devices(len(found)))


def _cuda_advice() -> str:
    """What is missing for torch to use the GPUs that the driver has; and for them to be fast."""
    from aegaeon.device.cuda.driver import NoCudaError
    from aegaeon.device.cuda.torch_streams import use

    try:
        use(0)
    except NoCudaError as error:
        return f"{error}: install a CUDA build of torch, or serve with --device cpu"
    triton = importlib.util.find_spec("triton") is not None
    return "" if triton else "attention is slow without Triton: python -m pip install triton"


def _pinnable() -> Finding:
    """What a GPU copies from at full speed must be locked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", "no limit")
    return Finding("locked memory", f"{format_bytes(soft)} (matters to GPUs only, and not to root)")


_LOOKS: tuple[Callable[[], Finding], ...] = (
    _python,
    *(partial(_package, name) for name in ("torch", "transformers", "ray")),
    _loader,
    _cores,
    _memory,
    _shared_memory,
    _ray_memory,
    _run_folder,
    _cache_folder,
    _open_files,
    _pinnable,
    _gpu,
)
