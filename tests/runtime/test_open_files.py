"""The limit on open files of a service."""

import resource
import subprocess
import sys

import pytest

from aegaeon.core.config import InstanceConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.descriptors import needed

_RAISE = """
import resource, sys
from aegaeon.cli.open_files import raise_file_limit
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
