"""``python -m benchmark.loader``."""

import sys

from benchmark.loader.main import main

sys.exit(main())
