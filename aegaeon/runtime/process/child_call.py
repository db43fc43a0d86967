"""A function's result, from a process of its own that ends with it: what it imports, and what goes wrong, ends, too."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from aegaeon.runtime.process.process import die_with_parent, processor_ticks, set_name
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log

logger = logging.getLogger(__name__)

_LOOK_S = 5.0
# Imports, conversions and reads all take processor time, if only a little.
_SILENCE_S = 60.0
_CODE = "import sys; sys.path[:] = {path!r}; from aegaeon.runtime.process.child_call import answer; answer({parent})"


class ChildDiedError(Exception):
    """The process ended before its function returned."""


@dataclass(frozen=True, slots=True)
class ChildCall:
    """``function`` of ``module``, called in a process ``name`` that logs to ``logs``; arguments and result are pickled.

    This process need not be able to import the module.
    """

    name: str
    logs: LogPlace
    module: str
    function: str

    def __call__(self, *arguments: object) -> Any:
        """What it returns, or raises. Raises ``ChildDiedError``, also where it was stuck and is killed."""
        child = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path, parent=os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        answered = self._answer(child, pickle.dumps((self, arguments)))
        if child.returncode:
            how = f"was killed by signal {-child.returncode}" if child.returncode < 0 else "has failed"
            raise ChildDiedError(f"the process {self.name} {how}")
        if not answered:
            raise ChildDiedError(f"the process {self.name} ended without an answer")
        result, error = pickle.loads(answered)
        if error is not None:
            raise error
        return result

    def _answer(self, child: subprocess.Popen[bytes], question: bytes) -> bytes:
        """What it writes until it ends; it is killed when it has had no processor time for long."""
        asked: bytes | None = question
        spent, looked_s = -1, time.monotonic()
        while True:
            try:
                return child.communicate(asked, timeout=_LOOK_S)[0]
            except subprocess.TimeoutExpired:
                asked = None  # it is on its way
            except BaseException:
                child.kill()
                child.wait()
                raise
            now_s, before = time.monotonic(), spent
            spent = processor_ticks(child.pid)
            if spent != before:
                looked_s = now_s
            elif now_s - looked_s > _SILENCE_S:
                logger.warning("the process %s has done nothing for %.0f s: it is killed", self.name, now_s - looked_s)
                child.kill()


def answer(parent_pid: int) -> NoReturn:
    """The child: does what it is told on standard input, and answers where its standard output was."""
    die_with_parent(parent_pid)
    call, arguments = pickle.load(sys.stdin.buffer)
    set_name(call.name)
    with os.fdopen(os.dup(1), "wb") as out:
        begin_process_log(call.name, call.logs)
        result, raised = None, None
        try:
            result = getattr(importlib.import_module(call.module), call.function)(*arguments)
        except Exception as error:  # noqa: BLE001 -- it is raised again, in the parent
            raised = _portable(error)
        except SystemExit as error:
            raised = ChildDiedError(f"the process {call.name} ended itself ({error.code})")
        out.write(pickle.dumps((result, raised)))
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """The error, if it can pass between processes, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 -- its class is anybody's
        return ChildDiedError(f"{type(error).__name__}: {error}")
    return error
