"""Text from outside on the terminal: never markup, never obeyed, never a traceback."""

import ast
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tests.fake_server import FakeServer, Seen, completion, failure

from spot import terminal
from spot.errors import RunFailed, UserError, plain_errors
from spot.files.store import read_rows, write_rows
from spot.progress import bar
from spot.schema import Attempt, Problem, Verdict
from spot.stages.doctor import Check, print_checks

SOURCE = Path(terminal.__file__).parent
HOSTILE = (
    "[/x] [link=http://e]a[/link] [bold :smile: \x1b]8;;http://e\x1b\\a \x1b[2J\x9b1m\r\x07\x08 \u202e\u2028 日本\x00"
)
MARKS = ["[", "]", "/", "\\", "link=http://e", "bold", "@click=f", ":smile:", "\x1b[31m", "\x1b]8;;u\x07", "\r", "日"]
hostile = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=3))).map("".join)


def console(**settings: object) -> Console:
    return terminal.new_console(**{"file": io.StringIO(), "width": 100, **settings})


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def obeyed(text: str) -> set[str]:
    """What of `text` a terminal would not print."""
    return {character for character in text if not character.isprintable() and character not in "\n\t\u200c\u200d"}


@given(hostile)
@example(HOSTILE)
@example("\ud800")
def test_whatever_a_text_holds_is_printed_as_it_is_spelled(text: str) -> None:
    on = console()
    on.print(text, soft_wrap=True)
    spelled = terminal.printable(text)
    assert "".join(shown(on).split()) == "".join(spelled.split())
    assert not {one for one in obeyed(shown(on)) if one not in "\u00a0\u3000" and not one.isspace()}
    for control in ("\x1b", "\r", "\x07", "\x9b"):
        assert control not in shown(on)
    assert terminal.printable(spelled) == spelled


@given(hostile)
@example(HOSTILE)
def test_tables_bars_and_ready_made_texts_go_through_the_same_door(text: str) -> None:
    on = console()
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_row(Text(text))
    on.print(table)
    print_checks(on, [Check(text, "fail", text, text)])
    on.print(Text.assemble((text, "green"), text))
    assert not any(control in shown(on) for control in ("\x1b", "\r", "\x07", "\x9b", "\x00"))

    live = console(force_terminal=True, color_system="truecolor")
    with bar(live, text) as progress:
        progress.update(1, 2, text)
        progress.say(text)
    assert "\x1b]8" not in shown(live) and "\x9b" not in shown(live) and "\x07" not in shown(live)
    lines = console()
    with bar(lines, text) as progress:
        progress._last_line = -1e9  # pyright: ignore[reportPrivateUsage]
        progress.update(1, 2, text)
    assert "1/2" in shown(lines) and "\x1b" not in shown(lines)


@given(hostile)
@example(HOSTILE)
def test_an_error_is_one_printable_line(text: str) -> None:
    for kind, code in ((UserError, 2), (RunFailed, 1)):
        errors, sys.stderr = sys.stderr, io.StringIO()
        try:
            with pytest.raises(SystemExit) as end, plain_errors():
                raise kind(text)
            written = sys.stderr.getvalue()
        finally:
            sys.stderr = errors
        assert end.value.code == code and written.count("\n") == 1 and written.endswith("\n")
        assert not any(control in written for control in ("\x1b", "\r", "\x07", "\x9b", "\x00"))


def test_a_terminal_that_lacks_a_character_gets_its_code() -> None:
    raw = io.BytesIO()
    on = terminal.new_console(file=io.TextIOWrapper(raw, "latin-1", write_through=True), width=100)
    on.print("日本 é ✓")
    assert raw.getvalue().decode("latin-1").strip() == "\\u65e5\\u672c é \\u2713"


def test_there_is_no_other_door() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            where = f"{path.name}:{getattr(node, 'lineno', 0)}: {name}"
            assert name != "Console", f"{where}: a console is made by terminal.new_console"
            assert name != "print", f"{where}: there is a console for this"
            assert "from_markup" not in name and (name != "escape" or path.name == "inspect_tasks.py"), where
            assert path.name == "terminal.py" or name != "sys.stderr.write" or path.name == "interrupt.py", where


PROBLEM = Problem(id="[/p]", prompt="What is 2 + 2?", answer="4")
WRONG = Attempt(
    id="[/p]#0", problem_id="[/p]", sample=0, response="It is \\boxed{3}", finish_reason="stop",
    verdict=Verdict(correct=False), model="m[/x]",
)  # fmt: skip


def spot(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("spot", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, *arguments], cwd=place, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and not obeyed(done.stdout + done.stderr), done.stderr
    return done


NAMES = ["out[/x].jsonl", "[bold].jsonl", "[link=e]a[].jsonl"]


def test_commands_print_the_names_that_they_were_given(tmp_path: Path) -> None:
    for name in NAMES:
        for command in (("lab", "problems", "--count", "2"), ("connect4", "--n", "2")):
            done = spot(tmp_path, *command, "--output", name)
            assert done.returncode == 0 and done.stdout.startswith(f"{name}: 2 "), done.stderr
    write_rows(tmp_path / "in[/x]", [PROBLEM])
    write_rows(tmp_path / "a[/x]", [WRONG])
    (tmp_path / "c[").mkdir()
    (tmp_path / "c[/x]").write_text(json.dumps({"attempt_id": WRONG.id, "response": "It is \\boxed{4}"}))
    rows = ("--problems", "in[/x]", "--attempts", "a[/x]")
    done = spot(tmp_path, "rectify", *rows, "--output", "d[/x]", "rectify.oracle=import", "rectify.path=c[/x]")
    assert done.returncode == 0 and done.stdout.startswith("d[/x]: 1 of 1 corrections verified"), done.stderr
    pairs = ("filter", "--model", "lab", *rows, "--rectifications", "d[/x]", "--output", "d[/f]", "filter.gamma=1")
    done = spot(tmp_path, *pairs)
    assert done.stdout.startswith("d[/f]: 1 pairs"), done.stderr
    done = spot(tmp_path, "ledger", "d[/none]")
    assert done.returncode == 2 and done.stderr.startswith("error: d[/none]"), done.stderr


def test_a_server_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [PROBLEM])
    write_rows(tmp_path / "a.jsonl", [WRONG])

    def refuses(seen: Seen) -> object:
        return failure(400, HOSTILE)

    def answers(seen: Seen) -> object:
        return completion(HOSTILE)

    for number, script in enumerate((refuses, answers)):
        with FakeServer(script) as server:  # pyright: ignore[reportArgumentType]
            done = spot(
                tmp_path, "rectify", "--problems", "p.jsonl", "--attempts", "a.jsonl", "--output", f"{number}.jsonl",
                "rectify.model=m[/x]", f"rectify.base_url={server.url}", "rectify.input_price=1",
            )  # fmt: skip
            assert done.returncode in (1, 2)
        ledger = f"{number}.ledger.sqlite"
        done = spot(tmp_path, "ledger", ledger, "--export", f"e[{number}].jsonl")
        assert "m[/x]" in done.stdout and f"e[{number}].jsonl: 1 requests" in done.stdout
    rows = read_rows(tmp_path / "p.jsonl", Problem)
    assert rows == [PROBLEM]
