"""By what a model directory is known again. All raise ``OSError``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def config_fingerprint(path: Path) -> str:
    """Another one for another ``config.json``."""
    return hashlib.sha256((path / "config.json").read_bytes()).hexdigest()


def weights_fingerprint(path: Path) -> str:
    """Another one where a file of weights was written or replaced, also by who sets the time of the old one."""
    states = [(file.name, file.stat()) for file in sorted(path.glob("*.safetensors"))]
    facts = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for name, state in states]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def files_fingerprint(path: Path) -> str:
    """Another one for a file more or less, or one that was written or replaced; folders within do not count."""
    states = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    facts = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
