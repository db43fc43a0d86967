"""How many files a pool opens, and what is said where it may not."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from aegaeon.core.config import InstanceConfig, ModelConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.descriptors import needed, shortage


def pool(models: int, instances: int) -> PoolConfig:
    return PoolConfig(
        models=tuple(ModelConfig(f"m{index}", Path()) for index in range(models)),
        instances=(InstanceConfig(Role.MIXED, instances),),
    )


def test_every_model_and_instance_takes_some():
    few, models, instances = needed(pool(1, 1)), needed(pool(101, 1)), needed(pool(1, 9))
    assert models.driver >= few.driver + 100
    assert models.instance >= few.instance + 100
    assert instances.server == few.server + 8 * 3
    assert needed(pool(100, 8)).driver > models.driver + 700  # every instance may have every model


@pytest.mark.parametrize(
    ("limit", "says"), [(None, ""), (1 << 20, ""), (2000, "clients at once"), (64, "fewer models")]
)
def test_what_is_missing_is_told_with_what_to_do(limit: int | None, says: str):
    message = shortage(needed(pool(4, 2)), limit)
    assert says in message
    assert bool(message) == bool(says)
    assert "ulimit" in message or not says


_RAISE = """
import resource, sys
from aegaeon.descriptors import raise_file_limit
from aegaeon.core.config import InstanceConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.service import ServiceError
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    raise_file_limit(PoolConfig((), instances=(InstanceConfig(Role.MIXED, int(sys.argv[3])),)))
except ServiceError as error:
    sys.exit(str(error))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def raised(soft: int, hard: int, instances: int) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", _RAISE, str(soft), str(hard), str(instances)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_it_is_raised_as_far_as_it_goes() -> None:
    assert raised(64, 1000, 1).stdout == "(1000, 1000)\n"
    assert raised(1000, 1000, 1).stdout == "(1000, 1000)\n"


@pytest.mark.parametrize(("hard", "instances"), [(64, 1), (256, 100)])
def test_a_service_that_could_not_start_says_what_to_raise(hard: int, instances: int) -> None:
    told = raised(32, hard, instances).stderr
    assert f"may open {hard} files here" in told
    assert "LimitNOFILE" in told


def test_an_ordinary_limit_is_enough_for_an_ordinary_pool() -> None:
    assert needed(PoolConfig((), instances=(InstanceConfig(Role.DECODE, 32),))).least < 1024
    assert resource.RLIM_INFINITY < 0, "an unlimited one compares as less than what is needed, and is told apart"


def test_too_few_are_told_before_anything_is_started(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
        f"from aegaeon.cli import main; main(['serve', 'm={tmp_path}', '--port', '0'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert "a process may open 200 files" in run.stderr
    assert "Traceback" not in run.stderr
