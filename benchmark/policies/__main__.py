"""``python -m benchmark.policies``."""

import sys

from benchmark.policies.main import main

sys.exit(main())
