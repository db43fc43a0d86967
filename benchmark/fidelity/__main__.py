"""``python -m benchmark.fidelity``."""

import sys

from benchmark.fidelity.main import main

sys.exit(main())
