"""One thread a process for all tests: tiny models gain nothing from two, and lose minutes where a core is busy."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
