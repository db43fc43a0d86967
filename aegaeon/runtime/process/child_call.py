"""A function's result, from a process of its own that ends with it: what it imports, and what goes wrong, ends, too."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from aegaeon.runtime.process.process import die_with_parent, set_name
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log

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
        """What it returns, or raises. Raises ``ChildDiedError``."""
        ended = subprocess.run(
            [sys.executable, "-c", _CODE.format(path=sys.path, parent=os.getpid())],
            input=pickle.dumps((self, arguments)),
            stdout=subprocess.PIPE,
            check=False,
        )
        if ended.returncode:
            how = f"was killed by signal {-ended.returncode}" if ended.returncode < 0 else "has failed"
            raise ChildDiedError(f"the process {self.name} {how}")
        result, error = pickle.loads(ended.stdout)
        if error is not None:
            raise error
        return result


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
            raised = error
        out.write(pickle.dumps((result, raised)))
    os._exit(0)
