"""Which cluster ``--ray-address`` means."""

from pathlib import Path

import pytest

from aegaeon.core.service import ServiceError
from aegaeon.runtime.cluster.ray_address import Raylet, current_cluster, resolve_address

OTHERS = Raylet("10.0.0.5:6379", Path("/tmp/ray"))
SECOND = Raylet("10.0.0.5:7000", Path("/srv/ray"))
PRIVATE = Raylet("127.0.0.1:41000", Path("/tmp/aegaeon-4711-abcdef/ray"))


def test_auto_is_the_cluster_of_this_machine_and_never_a_service_s_own() -> None:
    assert resolve_address("auto", {}, [PRIVATE, OTHERS, OTHERS], None) == OTHERS.address
    assert resolve_address("auto", {}, [OTHERS, PRIVATE], PRIVATE.address) == OTHERS.address


def test_where_only_services_have_a_ray_there_is_none_to_join() -> None:
    with pytest.raises(ServiceError, match=r"no Ray cluster runs on this machine.*ray start --head"):
        resolve_address("auto", {}, [PRIVATE], PRIVATE.address)


def test_one_that_was_started_to_be_joined_goes_before_one_that_a_program_has_for_itself() -> None:
    notebook = Raylet("10.0.0.5:5000", Path("/tmp/ray"), started=False)
    assert resolve_address("auto", {}, [notebook, OTHERS], None) == OTHERS.address
    assert resolve_address("auto", {}, [notebook, PRIVATE], None) == notebook.address


def test_of_several_it_is_the_one_that_was_started_last_or_a_choice() -> None:
    assert resolve_address("auto", {}, [OTHERS, SECOND], SECOND.address) == SECOND.address
    with pytest.raises(ServiceError, match=r"--ray-address 10\.0\.0\.5:6379 or 10\.0\.0\.5:7000"):
        resolve_address("auto", {}, [SECOND, OTHERS], "10.0.0.5:1")


def test_the_variable_says_what_auto_is_and_nothing_about_a_name() -> None:
    environment = {"RAY_ADDRESS": SECOND.address}
    assert resolve_address("auto", environment, [OTHERS, SECOND], OTHERS.address) == SECOND.address
    assert resolve_address(OTHERS.address, environment, [OTHERS, SECOND], None) == OTHERS.address
    assert resolve_address("auto", {"RAY_ADDRESS": "auto"}, [OTHERS], None) == OTHERS.address


@pytest.mark.parametrize("address", [PRIVATE.address, "localhost:41000"])
def test_the_ray_of_another_service_is_refused_by_name_too(address: str) -> None:
    with pytest.raises(ServiceError, match="belongs to another aegaeon service"):
        resolve_address(address, {}, [OTHERS, PRIVATE], None)


@pytest.mark.parametrize("address", ["ray://10.0.0.5:10001", "local", "somewhere", "host:", "host:x", ":6379"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ServiceError, match="HOST:PORT"):
        resolve_address(address, {}, [], None)


def test_what_ray_start_noted_is_found_where_ray_looks(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.5:6379\n")
    assert current_cluster({"RAY_TMPDIR": str(tmp_path), "TMPDIR": "/nonexistent"}) == "10.0.0.5:6379"
    assert current_cluster({"TMPDIR": str(tmp_path)}) == "10.0.0.5:6379"
    assert current_cluster({"TMPDIR": str(tmp_path / "missing")}) is None
