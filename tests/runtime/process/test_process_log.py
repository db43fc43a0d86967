"""What a service's processes say, and how it comes to the operator."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aegaeon.core.service import ServiceError
from aegaeon.runtime.process.log_reader import LogReader, LogWatch
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log

_PROCESS = """
import ctypes, logging, sys, threading
from pathlib import Path
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log
begin_process_log("node0-decode-0", LogPlace(folder=Path(sys.argv[1])))
logger = logging.getLogger("aegaeon.test")
logger.info("all is well")
logging.getLogger("library").info("chatter")
{rest}
"""


def play(folder: Path, rest: str) -> None:
    subprocess.run([sys.executable, "-c", _PROCESS.format(rest=rest), str(folder)], check=False, capture_output=True)


def shown(folder: Path) -> tuple[list[str], bool]:
    """What the operator sees, and whether it was trouble."""
    lines: list[str] = []
    with LogWatch(folder, lines.append) as watch:
        pass
    return lines, watch.trouble


def test_a_process_that_is_well_shows_nothing_and_its_log_has_it(tmp_path: Path) -> None:
    play(tmp_path, "")
    assert shown(tmp_path) == ([], False)
    text = (tmp_path / "node0-decode-0.log").read_text()
    assert "INFO node0-decode-0[" in text
    assert "all is well" in text
    assert "chatter" not in text


def test_a_warning_is_shown_with_its_process_and_is_no_trouble(tmp_path: Path) -> None:
    play(tmp_path, "logger.warning('careful:\\nsecond line')\nlogger.info('still\\nwell')")
    (first, second), trouble = shown(tmp_path)
    assert "WARNING node0-decode-0[" in first
    assert first.endswith("careful:")
    assert second == "    second line"
    assert not trouble


def test_an_error_is_shown_with_its_traceback_and_is_trouble(tmp_path: Path) -> None:
    play(tmp_path, "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logger.exception('it broke')\nlogger.info('on')")
    lines, trouble = shown(tmp_path)
    assert lines[0].endswith("it broke")
    assert lines[-1].endswith("ZeroDivisionError: division by zero")
    assert trouble


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("raise RuntimeError('unseen')", "RuntimeError: unseen"),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "ZeroDivisionError"),
        ("ctypes.string_at(0)", "Segmentation fault"),
        ("sys.stderr.write('terminate called'); sys.stderr.flush()", "terminate called"),
    ],
)
def test_last_words_that_no_log_wrote_are_shown_and_are_trouble(tmp_path: Path, end: str, words: str) -> None:
    play(tmp_path, end)
    lines, trouble = shown(tmp_path)
    assert any(words in line for line in lines)
    assert all(line.startswith("node0-decode-0: ") for line in lines)
    assert trouble


def test_marks_of_ray_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "node0-driver.log").write_text(":job_id:01000000\n:actor_name:DriverActor\n\n")
    assert shown(tmp_path) == ([], False)


def test_lines_come_once_whole_and_as_they_are_written(tmp_path: Path) -> None:
    reader = LogReader(tmp_path)
    with (tmp_path / "a.log").open("w") as file:
        file.write("one\ntw")
        file.flush()
        assert [line.text for line in reader.read()] == ["one"]
        file.write("o\nthree")
        file.flush()
        assert [line.text for line in reader.read()] == ["two"]
    assert [line.text for line in reader.finish()] == ["three"]
    assert list(reader.finish()) == []


def test_the_watch_shows_lines_while_it_watches(tmp_path: Path) -> None:
    lines: list[str] = []
    with LogWatch(tmp_path, lines.append):
        (tmp_path / "a.log").write_text("last words\n")
        deadline_s = time.monotonic() + 30
        while not lines and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert lines == ["a: last words"]
    assert lines == ["a: last words"]


def test_an_error_of_the_service_itself_is_trouble(tmp_path: Path) -> None:
    for error, trouble in (
        (ValueError("a bug"), True),
        (ServiceError("no such model"), False),
        (KeyboardInterrupt(), False),
    ):
        watch = LogWatch(tmp_path, print)
        with pytest.raises(type(error)), watch:
            raise error
        assert watch.trouble is trouble


def test_a_log_file_that_cannot_be_written_is_told() -> None:
    with pytest.raises(ServiceError, match="--log-file"):
        begin_process_log("node0-driver", LogPlace(Path("/nonexistent/log"), level=logging.INFO))
