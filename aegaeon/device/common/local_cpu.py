"""What latency profiles call this machine's processor, and what is worth noting about it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """An instance's device: on CPU, ``threads`` cores of a processor; ``copying``: worked with as if it were a GPU."""

    processor: str
    cores: int
    threads: int
    copying: bool = False

    @property
    def name(self) -> str:
        """Name of its folder of profiles: letters and digits. Profiles hold for one number of threads."""
        return f"{re.sub(r'[^a-z0-9]', '', self.processor.lower())}{self.threads}t{'copying' * self.copying}"

    @property
    def description(self) -> str:
        """The processor and how many of its cores, in words."""
        return f"{self.processor}, {self.threads} of {self.cores} cores{', copying' * self.copying}"


def local_cpu(threads: int, cpuinfo: Path = Path("/proc/cpuinfo"), *, copying: bool = False) -> LocalDevice:
    """This machine's processor as an instance with ``threads`` compute threads uses it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = next((name for name in names if name), "") or platform.processor() or platform.machine()
    return LocalDevice(processor, len(os.sched_getaffinity(0)), threads, copying)
