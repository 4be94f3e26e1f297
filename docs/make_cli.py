"""Writes docs/cli.md from the real --help of every command; `--check` fails if the file is out of date."""

import os
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).parent / "cli.md"
COMMANDS = ["", "run", "demo", "elicit", "rectify", "filter", "eval", "report", "doctor", "lab", "lab train"]
COMMANDS += ["ledger", "audit", "sets", "connect4"]
COMMANDS += ["lab problems"]
INTRO = """# The command line

Made from `spot --help` by `make docs`; a check in CI keeps it in date. `spot train` is not here: its flags are those of
the installed transformers' `TrainingArguments` and the method's own, so `spot train --help` is the place to look.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    for command in COMMANDS:
        call = [sys.executable, "-m", "spot", *command.split(), "--help"]
        environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        done = subprocess.run(call, capture_output=True, text=True, check=True, env=environment)
        text = done.stdout.replace("python -m spot", "spot").rstrip()
        title = f"spot {command}".strip()
        parts.append(f"\n## {title}\n\n```text\n{text}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text() != page():
            sys.exit("docs/cli.md is out of date; run: make docs")
    else:
        TARGET.write_text(page())
