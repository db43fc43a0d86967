"""``python -m benchmark.chaos``."""

import sys

from benchmark.chaos.main import main

sys.exit(main())
