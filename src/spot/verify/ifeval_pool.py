"""The pool of killable workers in which IFEval's instructions are checked."""

import atexit
import os

from spot.verify.pool import Pool, Program

PROGRAM = Program(
    "spot.verify.ifeval_worker",
    "instructions",
    "lm_eval",
    # One thread for numpy, which NLTK imports: many would reserve more memory than the worker may have.
    {"OPENBLAS_NUM_THREADS": "1"},
)
# A response may take longer than an expression, being longer.
SHARED = Pool(cpu_seconds=10.0, wall_seconds=60.0, program=PROGRAM)
"""The process's own pool. Making it costs nothing: workers start with the first request and end with the process."""
atexit.register(SHARED.close)
os.register_at_fork(after_in_child=SHARED.forget)
