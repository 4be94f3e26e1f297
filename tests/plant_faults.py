"""Plants ten faults, one at a time, in a copy of the source, and shows that a test file fails for each.

`python tests/plant_faults.py [NAME...]` prints a line for each fault and exits with 1 where one is not caught, where a
test file fails without a fault, or where the text to replace does not stand exactly once in the source.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """`text`, which stands once in the source, becomes `wrong`; `test` has to fail then."""

    name: str
    text: str
    wrong: str
    test: str


FAULTS = (
    Fault(
        "the rejected term of eq. 10 has the wrong sign",
        "logsigmoid(-(rejected - delta))",
        "logsigmoid(rejected - delta)",
        "tests/test_objectives.py",
    ),
    Fault(
        "the reward shift follows the last batch in place of the average",
        "return decay * delta + (1 - decay) * batch_mean",
        "return (1 - decay) * delta + decay * batch_mean",
        "tests/test_objectives.py",
    ),
    Fault(
        "eq. 1 divides by the rejected answer's length",
        "lcs_length(rejected_ids, chosen_ids) / len(chosen_ids)",
        "lcs_length(rejected_ids, chosen_ids) / max(1, len(rejected_ids))",
        "tests/pairs/test_change.py",
    ),
    Fault(
        "a pair at gamma itself is dropped", "elif ratio > gamma:", "elif ratio >= gamma:", "tests/pairs/test_change.py"
    ),
    Fault(
        "the first box counts and not the last",
        "            start = opening.end()\n",
        "            start = start or opening.end()\n",
        "tests/verify/test_verify_boxed.py",
    ),
    Fault(
        "an answer within a think block counts",
        'if "think>" not in response:',
        "if response:",
        "tests/verify/test_verify_boxed.py",
    ),
    Fault(
        "a request that is sent again is counted once",
        "DO UPDATE SET sends = sends + 1,",
        "DO UPDATE SET sends = sends,",
        "tests/models/test_ledger.py",
    ),
    Fault(
        "one correction too many is asked for",
        "if len(self._on_their_way) < self.missing:",
        "if len(self._on_their_way) <= self.missing:",
        "tests/rectify/test_target.py",
    ),
    Fault(
        "the letter of the right choice does not follow the order shown",
        '"answer": LETTERS[order.index(0)]',
        '"answer": LETTERS[order[0]]',
        "tests/evaluate/test_tasks.py",
    ),
    Fault(
        "an interval is of 90% and not of 95%",
        "LOW, HIGH = 0.025, 0.975",
        "LOW, HIGH = 0.05, 0.95",
        "tests/evaluate/test_intervals.py",
    ),
)


def plant(fault: Fault, source: Path) -> None:
    """Change the one file below `source` that has the fault's text, wherever it has been moved."""
    holds = [path for path in sorted(source.rglob("*.py")) if fault.text in path.read_text("utf-8")]
    if len(holds) != 1 or holds[0].read_text("utf-8").count(fault.text) != 1:
        sys.exit(f"{fault.name}: {fault.text!r} has to stand once below src; update tests/plant_faults.py")
    holds[0].write_text(holds[0].read_text("utf-8").replace(fault.text, fault.wrong), "utf-8")


def passes(test: str, source: Path) -> bool:
    """Run a test file on the package in `source`. Raises RuntimeError where tests neither passed nor failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Each fault in a copy of its own; the number of those that no test noticed."""
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean"
        shutil.copytree(ROOT / "src", clean)
        for test in dict.fromkeys(fault.test for fault in chosen):
            if not passes(test, clean):
                sys.exit(f"{test} fails without a fault")
        for number, fault in enumerate(chosen):
            faulty = Path(folder) / str(number)
            shutil.copytree(ROOT / "src", faulty)
            plant(fault, faulty)
            caught = not passes(fault.test, faulty)
            missed += not caught
            print(f"{'caught' if caught else 'MISSED'}  {fault.name}  ({fault.test})", flush=True)  # noqa: T201
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
