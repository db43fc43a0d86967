"""Which policy a pool runs that a benchmark starts: what options, environment or pool file say, else the default.

A benchmark says it to the pool, and into its records: neither then depends on what the default is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aegaeon.core.config import PoolConfig
from aegaeon.settings.error import SettingsError
from aegaeon.settings.schema import given, validate
from aegaeon.settings.sources import read_sources
from benchmark.command.errors import BenchmarkUsageError

DEFAULT_POLICY = PoolConfig(models=()).policy


def chosen_policy(flag: str | None, config: Path | None, environment: Mapping[str, str]) -> str:
    """The policy by ``aegaeon serve``'s own rules. Raises ``BenchmarkUsageError``."""
    try:
        values = given(validate(read_sources((), config, {"policy": flag}, environment)))
    except SettingsError as error:
        raise BenchmarkUsageError(str(error)) from error
    return str(values.get("policy", DEFAULT_POLICY))
