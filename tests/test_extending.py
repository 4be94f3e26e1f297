"""The examples of docs/extending.md, run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n# mine\.py\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    (tmp_path / "mine.py").write_text("\n".join(examples))
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "What is 1 + 1?", "answer": "2"}\n')
    (tmp_path / "a.jsonl").write_text('{"problem_id": "a", "response": "It is 3"}\n')
    (tmp_path / "c.yaml").write_text(
        "run: {dir: run, stages: [elicit, rectify]}\n"
        "problems: {source: p.jsonl, verifier: 'mine:judge'}\n"
        "elicit: {attempts: a.jsonl}\n"
        "rectify: {oracle: 'mine:oracle'}\n"
    )
    call = [sys.executable, "-m", "spot", "run", "c.yaml"]
    done = subprocess.run(
        call, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "run/rectifications.jsonl").read_text())
    assert (row["oracle"], row["response"], row["accepted"]) == ("answerer", "It is 2", True)
