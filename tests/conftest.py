"""One thread a process for all tests: tiny models gain nothing from two, and lose minutes where a core is busy."""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"

# The gate draws the same examples every time; HYPOTHESIS_PROFILE=default looks for new ones.
# No deadline: a busy core is no fault of the code.
settings.register_profile("gate", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
