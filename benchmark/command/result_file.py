"""Files of results: what all of them begin with.

No benchmark draws: a file says in ``benchmark`` what it is of, and ``python -m plots.results FILE`` draws it beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aegaeon.run_header import result_header

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmark" / "results"


def write_result(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a result file: what it is of, when and by whose code it was made, and its content."""
    header = result_header(benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = {name: value for name, value in content.items() if name not in header}
    path.write_text(json.dumps({**header, **rest}, indent=1) + "\n", encoding="utf-8")
