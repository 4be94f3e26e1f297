"""The commands and snippets of docs/coming-from-trl.md, run in order on a tiny student; its tables against the code."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from tests.warm import warm_process

from spot.train.command import ScriptArguments
from spot.train.config import SpotConfig
from spot.train.objective import OBJECTIVES

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-trl.md").read_text("utf-8")
MODEL = "Qwen/Qwen3-8B"
# `spot.sh` makes `spot` the one that is being tested, wherever it is installed; nothing may be downloaded.
SHELL = f"""set -euo pipefail
. ./spot.sh
trl() {{ "{Path(sys.executable).parent / "trl"}" "$@" --use_cpu; }}
"""


def blocks() -> list[tuple[str, str]]:
    """Every fenced block: its language and its text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) * 2 == len(re.findall(r"^```", PAGE, re.MULTILINE)), "a fence is left open"
    return found


def run(language: str, text: str, directory: Path) -> str:
    """Run a block in `directory` with the tiny student in the place of the model; what it printed."""
    # TRL wants to be told that there is no GPU.
    code = text.replace(MODEL, "student").replace("DPOConfig(", "DPOConfig(use_cpu=True, ")
    call = ["bash", "-c", SHELL + code] if language == "sh" else [sys.executable, "-c", code]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "cache"), "COLUMNS": "100"}
    done = subprocess.run(call, cwd=directory, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the student and the pairs that the page speaks of."""
    directory = tmp_path_factory.mktemp("page")
    tokenizer, model = make_tokenizer(), make_model()
    tokenizer.eos_token = "<|im_end|>"
    model.save_pretrained(directory / "student")
    tokenizer.save_pretrained(directory / "student")
    (directory / "data").mkdir()
    rows = "".join(pair.model_dump_json() + "\n" for pair in make_pairs(6))
    (directory / "data" / "pairs.jsonl").write_text(rows)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "cache")}
    with warm_process(**offline) as python:
        (directory / "spot.sh").write_text(f'spot() {{ {shlex.join(python)} spot "$@"; }}\n')
        yield directory


def test_every_block_is_run() -> None:
    assert {language for language, _ in blocks()} == {"sh", "python"}
    assert sum("spot train" in text for _, text in blocks()) >= 3
    assert MODEL in PAGE


@pytest.mark.parametrize(("language", "text"), blocks(), ids=[text.splitlines()[0][:40] for _, text in blocks()])
def test_it_runs(language: str, text: str, place: Path) -> None:
    run(language, text, place)
    for output in re.findall(r"spot train[^`]*?--output_dir (\S+)", text):
        steps = [json.loads(line) for line in (place / output / "metrics.jsonl").read_text().splitlines()]
        assert steps and (place / output / "model.safetensors").is_file()


def test_a_command_that_fails_is_noticed(place: Path) -> None:
    with pytest.raises(AssertionError, match="no_such_flag"):
        run("sh", "spot train --no_such_flag 1\necho on", place)


def test_a_snippet_that_fails_is_noticed(place: Path) -> None:
    with pytest.raises(AssertionError, match="no_such_name"):
        run("python", "from spot import no_such_name", place)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first header is `first`."""
    lines = PAGE.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([a-z_0-9]+)`", cell)


def defaults(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        make: Any = entry.default_factory
        found[entry.name] = entry.default if make is dataclasses.MISSING else make()
    return found


def shown(cell: str) -> Any:
    (text,) = re.findall(r"`(.*)`", cell)
    value = yaml.safe_load(text)
    # YAML takes 1e-6 for text.
    return float(value) if re.fullmatch(r"\d+e-\d+", str(value)) else value


def test_the_defaults_shown_are_the_defaults() -> None:
    ours = defaults(SpotConfig)
    for cells in table("argument"):
        (name,) = names(cells[0])
        assert shown(cells[2]) == ours[name], name


def test_trls_defaults_shown_are_trls() -> None:
    trl: Any = import_module("trl")
    theirs, ours = defaults(trl.DPOConfig), defaults(SpotConfig)
    rows = {names(cells[0])[0]: shown(cells[1]) for cells in table("argument")}
    for name, value in rows.items():
        assert value == theirs[name], name
    # And the page is right that all others are the same.
    assert {name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]} <= rows.keys()


def test_what_is_called_ours_or_trls_alone_is() -> None:
    ours = {entry.name for kind in (SpotConfig, ScriptArguments) for entry in dataclasses.fields(kind)}
    paragraph = PAGE[PAGE.index("And these are ours:") :].partition("\n\n")[0]
    assert set(names(paragraph)) <= ours
    theirs = [name for cells in table("TRL") for name in names(cells[0])]
    assert not {name for name in theirs if name in ours}
    trl: Any = import_module("trl")
    known = {entry.name for kind in (trl.DPOConfig, trl.ModelConfig) for entry in dataclasses.fields(kind)}
    assert set(theirs) <= known
    known_here = known | {entry.name for entry in dataclasses.fields(trl.ScriptArguments)}
    assert ours - known_here == set(names(paragraph)) | {"config"}


def test_every_objective_is_on_the_page() -> None:
    cells: Iterator[str] = (cells[1] for cells in table("TRL's `loss_type`"))
    assert set(OBJECTIVES) <= {name for cell in cells for name in names(cell)}
