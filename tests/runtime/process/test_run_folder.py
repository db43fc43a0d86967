"""The folder of a running service: private, short, and removed by the next start when its service was killed."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegaeon.core.service import ServiceError
from aegaeon.runtime.process.run_folder import RunFolder, places, remove_abandoned

_HOLD = """
import os, sys
from aegaeon.runtime.process.run_folder import RunFolder
folder = RunFolder.create({"TMPDIR": sys.argv[1]})
print(folder.path, flush=True)
sys.stdin.read()
"""


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """pytest's own folders are too long for Ray's sockets."""
    parent = Path(f"/tmp/rf-{os.getpid()}")
    parent.mkdir()
    yield parent
    subprocess.run(["rm", "-rf", parent], check=True)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_only_the_owner_can_enter_whatever_the_umask(short_folder: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = RunFolder.create({"TMPDIR": str(short_folder)})
    finally:
        os.umask(before)
    assert folder.path.parent == short_folder
    assert {_mode(folder.path), _mode(folder.ray), _mode(folder.logs)} == {0o700}
    assert _mode(folder.token) == 0o600
    assert len(folder.token.read_text()) == 64
    folder.remove()
    assert list(short_folder.iterdir()) == []


def test_a_place_that_is_too_long_missing_or_a_file_is_passed_over(short_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    long = short_folder / ("long" * 20)
    long.mkdir()
    for bad in (long, tmp_path / "missing", file):
        folder = RunFolder.create({"XDG_RUNTIME_DIR": str(bad), "TMPDIR": str(short_folder)})
        assert folder.path.parent == short_folder
        folder.remove()
    assert list(long.iterdir()) == []


def test_a_relative_place_is_none() -> None:
    assert places({"TMPDIR": "here", "XDG_RUNTIME_DIR": ""}) == [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]


def test_no_place_at_all_says_why_and_what_to_do(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegaeon.runtime.process.run_folder.places", lambda _: [short_folder / "no"])
    with pytest.raises(ServiceError, match="no: No such file or directory; set TMPDIR"):
        RunFolder.create({})


def test_the_folder_of_a_killed_service_is_removed_and_that_of_a_running_one_is_not(short_folder: Path) -> None:
    environment = {"TMPDIR": str(short_folder)}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(short_folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        mine = RunFolder.create(environment)
        (short_folder / "aegaeon-12-abcdef").mkdir()  # without a lock: not a service's, or just being made
        remains = short_folder / "aegaeon-13-abcdef"
        remains.mkdir()
        os.utime(remains, (0, 0))  # nobody takes so long to make one
        assert remove_abandoned(environment) == [remains]
        process.kill()
        process.wait()
        assert remove_abandoned(environment) == [path]
        assert not path.exists()
        assert mine.path.exists()


def test_kept_logs_survive_the_service_and_the_next_start(short_folder: Path) -> None:
    environment = {"TMPDIR": str(short_folder)}
    folder = RunFolder.create(environment)
    (folder.logs / "decode0.log").write_text("last words\n")
    kept = folder.keep_logs()
    assert kept is not None
    assert remove_abandoned(environment) == []
    assert (kept / "decode0.log").read_text() == "last words\n"
    assert list(short_folder.iterdir()) == [kept]


def test_where_nobody_said_anything_nothing_is_kept(short_folder: Path) -> None:
    assert RunFolder.create({"TMPDIR": str(short_folder)}).keep_logs() is None
    assert list(short_folder.iterdir()) == []
