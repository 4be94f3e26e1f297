"""Verifiers by name, the exact one, and users' own."""

import sys
from pathlib import Path

import pytest

from spot.errors import RunFailed, UserError
from spot.schema import Problem, Verdict
from spot.verify.exact import verify_exact
from spot.verify.resolve import resolve

PROBLEM = Problem(id="p", prompt="?", answer="red  green\nblue")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_verifier.py").write_text(
        "from spot.schema import Verdict\n"
        "number = 5\n"
        "def right(response, problem): return Verdict(correct=response == problem.answer)\n"
        "def careless(response, problem): return True\n"
        "def broken(response, problem): raise ValueError('line\\nbreak')\n"
    )
    (tmp_path / "unreadable_verifier.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "own_verifier", raising=False)
    return "own_verifier"


@pytest.mark.parametrize(
    ("response", "correct", "reason"),
    [
        (r"\boxed{red green blue}", True, ""),
        ("\\boxed{ red\tgreen \n blue }", True, ""),
        (r"\boxed{Red green blue}", False, ""),
        (r"\boxed{redgreenblue}", False, ""),
        (r"\boxed{}", False, "no answer"),
        ("red green blue", False, "no answer"),
        ("\\boxed{\ud800}", False, ""),
    ],
)
def test_exact(response: str, correct: bool, reason: str) -> None:
    verdict = verify_exact(response, PROBLEM)
    assert (verdict.correct, verdict.reason) == (correct, reason)


def test_built_in_names() -> None:
    five = Problem(id="p", prompt="?", answer="5")
    assert resolve("math")(r"\boxed{+5}", five).correct is True
    assert resolve("math", pattern=r"A:\s*(.+)")("A: 5", five).correct is True
    assert resolve("exact")(r"\boxed{+5}", five).correct is False


@pytest.mark.parametrize("name", ["maths", "exat", "nothing", "", ":", "a:", ":b"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        resolve(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'math'"):
        resolve("maths")


def test_patterns_are_checked_at_once() -> None:
    with pytest.raises(UserError, match="regular expression"):
        resolve("math", pattern="A: (")
    with pytest.raises(UserError, match="exactly one"):
        resolve("math", pattern="A: .+")
    with pytest.raises(UserError, match="'exact' reads no answer pattern"):
        resolve("exact", pattern="A: (.+)")


def test_a_users_own_verifier_in_this_directory(module: str) -> None:
    verifier = resolve(f"{module}:right")
    assert verifier(PROBLEM.answer, PROBLEM) == Verdict(correct=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_verifier:wrong", "has no 'wrong'"),
        ("own_verifier:rigth", "did you mean 'right'"),
        ("own_verifier:number", "not a function"),
        ("no_such_module:right", "cannot import 'no_such_module'"),
        ("unreadable_verifier:right", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(module: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_what_a_users_verifier_raises_is_unscored(module: str) -> None:
    verdict = resolve(f"{module}:broken")("", PROBLEM)
    assert verdict == Verdict(correct=None, reason="verifier raised ValueError: line break")


def test_a_users_verifier_that_returns_no_verdict_is_named(module: str) -> None:
    with pytest.raises(RunFailed, match="own_verifier:careless"):
        resolve(f"{module}:careless")("", PROBLEM)
