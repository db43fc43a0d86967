"""``python -m benchmark.lmcache_harness``."""

import sys

from benchmark.lmcache_harness.main import main

sys.exit(main())
