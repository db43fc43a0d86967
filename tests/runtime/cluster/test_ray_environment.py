"""The environment that a service gives itself, its Ray and its libraries."""

import os
from pathlib import Path

import pytest

from aegaeon.runtime.cluster.ray_environment import settle_environment
from aegaeon.runtime.process.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.home.mkdir()
    return folder


def settled(environment: dict[str, str], folder: RunFolder, *, private_ray: bool = True) -> dict[str, str]:
    settle_environment(environment, folder, private_ray=private_ray)
    return environment


def test_a_private_ray_heeds_nothing_that_was_meant_for_another(folder: RunFolder) -> None:
    mine = {
        "RAY_ADDRESS": "10.0.0.5:6379",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "t",
        "RAY_REDIS_ADDRESS": "x",
    }
    ray = {name: value for name, value in settled(mine, folder).items() if name.startswith("RAY_")}
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_REDIS_ADDRESS"} & ray.keys()
    assert ray["RAY_AUTH_MODE"] == "token"
    assert ray["RAY_AUTH_TOKEN_PATH"] == str(folder.token)
    assert ray["RAY_memory_monitor_refresh_ms"] == "0"


def test_what_belongs_to_the_cluster_that_is_joined_stays(folder: RunFolder) -> None:
    mine = {"RAY_ADDRESS": "10.0.0.5:6379", "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}
    assert settled(mine | {"HOME": "/root"}, folder, private_ray=False).items() >= mine.items()


def test_a_token_that_is_there_is_shown_to_the_cluster_that_is_joined(folder: RunFolder, tmp_path: Path) -> None:
    home = tmp_path / "somebody"
    (home / ".ray").mkdir(parents=True)
    assert "RAY_AUTH_MODE" not in settled({"HOME": str(home)}, folder, private_ray=False)
    (home / ".ray" / "auth_token").write_text("t")
    for environment in ({"HOME": str(home)}, {"RAY_AUTH_TOKEN": "t"}, {"RAY_AUTH_TOKEN_PATH": "/t"}):
        assert settled(environment, folder, private_ray=False)["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("home", ["/nonexistent", "/etc/passwd", "relative", ""])
def test_a_home_that_takes_no_files_is_replaced(folder: RunFolder, home: str) -> None:
    assert settled({"HOME": home}, folder)["HOME"] == str(folder.home)


def test_a_home_that_takes_files_stays(folder: RunFolder, tmp_path: Path) -> None:
    assert settled({"HOME": str(tmp_path)}, folder)["HOME"] == str(tmp_path)


def test_a_user_without_a_name_gets_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    environment = settled({}, folder)
    assert environment["USER"] == f"uid{os.getuid()}"
    assert environment["HOME"] == str(folder.home)
    assert settled({"LOGNAME": "somebody"}, folder).get("USER") is None


def test_a_proxy_is_never_asked_for_the_way_to_this_machine(folder: RunFolder) -> None:
    environment = settled({"https_proxy": "http://proxy:1", "NO_PROXY": "example.org, 10.0.0.0/8"}, folder)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "example.org,10.0.0.0/8,127.0.0.1,localhost,::1"
    assert "no_proxy" not in settled({}, folder)
