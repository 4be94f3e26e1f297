"""The user's own Oracle by name; whatever it does wrong is one line that says where."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.rectify.conftest import MakeFailure

from spot.config import parse_config
from spot.errors import RunFailed, UserError
from spot.rectify.base import Correction
from spot.rectify.model_oracle import ModelOracle
from spot.rectify.own import OwnOracle, load_oracle
from spot.rectify.run import asked
from spot.stages.opening import open_oracle

MODULE = """
from spot.errors import UserError
from spot.rectify.base import Correction
class Mine:
    name, mode = "mine", "rewrite"
    async def correct(self, failures):
        for failure in failures:
            yield [Correction(failure.attempt.id, "4")]
class Raises(Mine):
    async def correct(self, failures):
        yield []
        raise RuntimeError("my oracle\\nbroke")
class Deep(Mine):
    async def correct(self, failures):
        yield [__import__("json").loads("{")]
class Refuses(Mine):
    async def correct(self, failures):
        yield []
        raise UserError("no key; set one")
class Returns(Mine):
    async def correct(self, failures):
        return []
class Bare(Mine):
    async def correct(self, failures):
        yield Correction("p0#0", "4")
class Odd(Mine):
    mode = "magic"
def make(): return Mine()
def wrong(): return 3
def picky(needed): return Mine()
def broken(): return 1 / 0
number = 3
class Half(Mine):
    async def correct(self, failures):
        yield [Correction(failures[0].attempt.id, "\\ud83d")]
def half(): return Half()
def tuned(strength=1): return Mine()
class Prompted:
    def __init__(self, setting): self.name, self.fingerprint = f"prompted {setting.mode}", "1"
    async def generate(self, requests, sampling, done=frozenset()):
        yield []
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of Oracles, good and bad."""
    (tmp_path / "spot_test_my_oracles.py").write_text(MODULE)
    (tmp_path / "spot_test_broken_oracle.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return "spot_test_my_oracles"


def corrected(spec: str, make_failure: MakeFailure) -> list[list[Correction]]:
    async def run() -> list[list[Correction]]:
        oracle = load_oracle(spec)
        assert isinstance(oracle, OwnOracle)
        return [group async for group in oracle.correct([make_failure(0), make_failure(1)])]

    return asyncio.run(run())


def test_a_users_oracle_by_name(mine: str, make_failure: MakeFailure) -> None:
    oracle = load_oracle(f"{mine}:make")
    assert isinstance(oracle, OwnOracle) and (oracle.name, oracle.mode) == ("mine", "rewrite")
    groups = corrected(f"{mine}:make", make_failure)
    assert groups == [[Correction("p0#0", "4")], [Correction("p1#0", "4")]]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nocolon", "must be written module:function"),
        ("spot_test_absent:make", "cannot import"),
        ("spot_test_my_oracles:absent", "has no 'absent'"),
        ("spot_test_my_oracles:number", "not a function"),
        ("spot_test_my_oracles:wrong", "did not return an Oracle, which has a 'name'"),
        ("spot_test_my_oracles:picky", "calling it failed .*needed"),
        ("spot_test_my_oracles:Odd", "its mode is 'magic'; it must be one of rewrite, patch"),
        ("spot_test_broken_oracle:make", "ZeroDivisionError"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_what_is_no_oracle_is_refused(spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_oracle(spec)


def test_a_function_that_raises_is_told_with_its_line(mine: str) -> None:
    with pytest.raises(RunFailed, match=r"^oracle '\w+:broken': ZeroDivisionError: .* \(spot_test_my_oracles.py:31\)$"):
        load_oracle(f"{mine}:broken")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Raises", r"RuntimeError: my oracle broke \(spot_test_my_oracles.py:12\)$"),
        # The line of the user's own, not that of the library which raised.
        ("Deep", r"JSONDecodeError: .* \(spot_test_my_oracles.py:15\)$"),
        ("Returns", r"correct returned coroutine; make it `async def` with `yield` \(see docs/extending.md\)$"),
        ("Bare", r"correct yielded Correction, not a list of corrections; see docs/extending.md$"),
    ],
)
def test_an_oracle_that_fails_is_one_line(mine: str, make_failure: MakeFailure, name: str, told: str) -> None:
    with pytest.raises(RunFailed, match=rf"^oracle '{mine}:{name}': {told}") as caught:
        corrected(f"{mine}:{name}", make_failure)
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_goes_through_as_it_is(mine: str, make_failure: MakeFailure) -> None:
    with pytest.raises(UserError, match=r"^no key; set one$"):
        corrected(f"{mine}:Refuses", make_failure)


def test_half_a_surrogate_pair_is_one_line(mine: str, make_failure: MakeFailure) -> None:
    with pytest.raises(RunFailed, match=r"the text of its correction of 'p0#0' holds half a surrogate pair"):
        corrected(f"{mine}:half", make_failure)


@pytest.mark.usefixtures("mine")
def test_options_are_the_functions_arguments_and_tell_corrections_apart(make_failure: MakeFailure) -> None:
    spec, failure = "spot_test_my_oracles:tuned", make_failure(0)
    plain, weak, strong = (load_oracle(spec, options) for options in ({}, {"strength": 2}, {"strength": 3}))
    assert isinstance(plain, OwnOracle) and isinstance(weak, OwnOracle) and isinstance(strong, OwnOracle)
    assert len({asked(oracle, failure, 0) for oracle in (plain, weak, strong)}) == 3
    with pytest.raises(UserError, match="calling it failed .*'speed'"):
        load_oracle(spec, {"speed": 1})


@pytest.mark.usefixtures("mine")
def test_a_function_may_return_a_model_which_is_prompted_in_the_runs_mode() -> None:
    section = {"oracle": "spot_test_my_oracles:Prompted", "mode": "patch", "candidates": 2}
    oracle = open_oracle(parse_config({"rectify": section}, "test"))
    assert isinstance(oracle, ModelOracle)
    assert (oracle.name, oracle.mode, oracle.candidates) == ("prompted patch", "patch", 2)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"oracle": "spot_test_my_oracles:make", "mode": "patch"}, "rectify.mode: the Oracle .* does not read it"),
        ({"oracle": "spot_test_my_oracles:make", "target_pairs": 3}, "rectify.target_pairs: the Oracle"),
        ({"oracle": "human", "candidates": 2}, "rectify.candidates: the Oracle 'human'"),
        ({"oracle": "human", "oracle_options": {"a": 1}}, "rectify.oracle_options: the Oracle 'human'"),
        ({"oracle": "scripted", "oracle_options": {"wrong_rate": 2}}, "wrong_rate must be a number from 0 to 1"),
        ({"oracle": "scripted", "oracle_options": {"wrong": 0.1}}, "oracle 'scripted': calling it failed .*'wrong'"),
        ({"oracle": "scripter"}, "unknown Oracle 'scripter'"),
    ],
)
def test_settings_that_an_oracle_does_not_read_are_refused(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_oracle(parse_config({"rectify": section}, "test"))
