"""Ray's start, with a Ray that does as it is told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from aegaeon.core.service import ServiceError
from aegaeon.runtime.cluster.ray_start import join_ray, start_private_ray
from aegaeon.runtime.process.log_reader import LogWatch
from aegaeon.runtime.process.run_folder import RunFolder

_SLOW = "The current node timed out during startup. This could happen because the GCS has become overloaded."


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    return folder


@pytest.fixture
def ray_that_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, object]]]:
    """``ray_that_fails(*errors)``: each start raises the next of them, then all is well; the starts so far."""

    def arrange(*errors: Exception) -> list[dict[str, object]]:
        starts: list[dict[str, object]] = []
        left = list(errors)

        def init(**options: object) -> None:
            starts.append(options)
            if left:
                raise left.pop(0)

        monkeypatch.setattr(ray, "init", init)
        return starts

    return arrange


def test_a_start_that_was_too_slow_is_tried_again_and_leaves_no_process(
    folder: RunFolder, ray_that_fails: Callable[..., list[dict[str, object]]]
) -> None:
    starts = ray_that_fails(Exception(_SLOW), RuntimeError("Failed to connect to GCS."))
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", f"--temp-dir={folder.ray}/session"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as left_over:
        start_private_ray(folder)
        assert left_over.wait(60) == -9
    assert len(starts) == 3
    assert starts[0]["_temp_dir"] == str(folder.ray)


@pytest.mark.parametrize("errors", [[Exception(_SLOW)] * 9, [ValueError("no such flag\nnor such a one")]])
def test_a_start_that_fails_is_told_in_one_line_and_noted_for_the_operator(
    folder: RunFolder, ray_that_fails: Callable[..., list[dict[str, object]]], errors: list[Exception]
) -> None:
    ray_that_fails(*errors)
    shown: list[str] = []
    with LogWatch(folder.logs, shown.append) as watch, pytest.raises(ServiceError) as told:
        start_private_ray(folder)
    assert "\n" not in str(told.value)
    assert "aegaeon doctor" in str(told.value)
    assert "Ray does not start" in shown[0]
    assert watch.trouble


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("Failed to connect to Ray cluster"), "no Ray cluster answers at 192.0.2.1:6379"),
        (ConnectionError("InvalidAuthToken: Authentication token is missing"), "asks for its token"),
        (RuntimeError("one\nVersion mismatch"), "cannot join the Ray cluster at 192.0.2.1:6379: Version mismatch"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_in_one_line(
    ray_that_fails: Callable[..., list[dict[str, object]]], error: Exception, says: str
) -> None:
    ray_that_fails(error)
    with pytest.raises(ServiceError) as told:
        join_ray("192.0.2.1:6379")
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_a_cluster_without_token_is_joined_with_a_warning(
    ray_that_fails: Callable[..., list[dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ray_that_fails()
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    join_ray("192.0.2.1:6379")
    assert "asks for no token" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    join_ray("192.0.2.1:6379")
    assert caplog.text == ""
