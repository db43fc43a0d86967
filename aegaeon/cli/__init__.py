"""The command line: ``aegaeon``.

Importing this package, ``--version`` and ``--help`` import neither torch nor Ray.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from aegaeon.cli.terminal.failure import ReportedBugError, report_bug, report_mistake
from aegaeon.core.service import ServiceDiedError, ServiceError
from aegaeon.settings.error import SettingsError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (default: this process's) and exit: 0, 1 for a bug, 2 for a mistake, 3 for a service that gave
    up, 130 after Ctrl-C or SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from aegaeon.cli.app import app  # here, so that even an import that fails is reported

        app(arguments, prog_name="aegaeon")
    except ServiceDiedError as error:
        report_mistake(error)
        sys.exit(3)
    except (SettingsError, ServiceError) as error:
        report_mistake(error)
        sys.exit(2)
    except ReportedBugError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 -- the last resort: every bug ends here, written to a log
        report_bug(error)
        sys.exit(1)
    sys.exit(0)
