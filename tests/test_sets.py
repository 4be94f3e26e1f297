"""`spot sets`: the baselines' data sets, of one size, in a format that TRL takes; the Oracle is asked once."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fake_server import Answer, FakeServer, Seen, completion, failure
from tests.tiny_student import make_model, make_tokenizer

from spot import cli
from spot.config import parse_config
from spot.files.store import read_rows, write_rows
from spot.models.paid.ledger import Ledger
from spot.schema import Attempt, Message, Pair, Problem, Rectification, Verdict
from spot.stages.baseline_sets import SET_NAMES, Example, SetName, cut, parse_names, right_answers

Spot = Callable[..., tuple[int, str, str]]

PROBLEMS = [Problem(id=f"p{n}", prompt=f"What is {n} + {n}?", answer=str(2 * n)) for n in range(6)]
ORACLE = "model:big"
UNSOLVED = {"p4", "p5"}
"""What the Oracle gets wrong when it is asked directly; it corrects p5 all the same."""


def attempt(number: int, correct: bool, sample: int = 0) -> Attempt:
    return Attempt(
        id=f"p{number}#{sample}",
        problem_id=f"p{number}",
        sample=sample,
        response=f"It is \\boxed{{{2 * number if correct else 99}}}",
        finish_reason="stop",
        verdict=Verdict(correct=correct),
        model="student",
    )


def rectification(number: int, accepted: bool, oracle: str = ORACLE) -> Rectification:
    return Rectification(
        id=f"p{number}#0~{oracle}.0",
        attempt_id=f"p{number}#0",
        problem_id=f"p{number}",
        oracle=oracle,
        mode="rewrite",
        candidate=0,
        response=f"It is, mended, \\boxed{{{2 * number}}}",
        verdict=Verdict(correct=accepted),
        accepted=accepted,
        reason="" if accepted else "does_not_verify",
    )


def pair(row: Rectification) -> Pair:
    return Pair(
        id=row.id,
        problem_id=row.problem_id,
        prompt=[Message(role="user", content=f"What is {row.problem_id[1:]} + {row.problem_id[1:]}?")],
        chosen=[Message(role="assistant", content=row.response)],
        rejected=[Message(role="assistant", content="It is \\boxed{99}")],
        change_ratio=0.2,
        oracle=row.oracle,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run after its filter stage: p0 to p2 answered right, p3 to p5 wrong, of these p3 and p5 corrected."""
    place = tmp_path / "run"
    place.mkdir()
    configure(place)
    (place / "manifest.json").write_text('{"stages": {}}\n')
    corrections = [rectification(5, True), rectification(4, False), rectification(3, True)]
    write_rows(place / "problems.jsonl", PROBLEMS)
    write_rows(place / "attempts.jsonl", [attempt(n, correct=n < 3) for n in (2, 5, 0, 1, 4, 3)])
    write_rows(place / "rectifications.jsonl", corrections)
    write_rows(place / "pairs.jsonl", [pair(row) for row in corrections if row.accepted])
    return place


def configure(place: Path, **rectify: Any) -> None:
    rectify = {"oracle": "model", "model": "big", "api_key_env": "BIG_KEY", "base_url": "http://h/v1"} | rectify
    config = parse_config({"problems": {"verifier": "exact"}, "rectify": rectify}, "test")
    (place / "config.yaml").write_text(config.to_yaml())


@pytest.fixture
def spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Spot:
    """`spot sets run ARGUMENT...` in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIG_KEY", "hush")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spot", "sets", "run", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as end:
            cli.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out, errors = capfd.readouterr()
        return int(end.value.code or 0), out, errors

    return call


def solves(seen: Seen) -> Answer:
    number = seen.question.split()[2]
    return completion(f"Directly \\boxed{{{99 if f'p{number}' in UNSOLVED else 2 * int(number)}}}")


def read(run: Path, name: SetName) -> list[Example]:
    return read_rows(run / "sets" / f"{name}.jsonl", Example)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "sets/summary.json").read_text())


def test_three_sets_of_one_size_and_an_oracle_that_is_asked_once(run: Path, spot: Spot) -> None:
    with FakeServer(solves) as server:
        url = f"rectify.base_url={server.url}"
        code, out, errors = spot(url, "rectify.input_price=1")
        assert code == 0, errors
    assert sorted(seen.question for seen in server.seen) == [problem.prompt for problem in PROBLEMS]
    made = {name: [row.problem_id for row in read(run, name)] for name in SET_NAMES}
    # The Oracle's p0 is the student's, its p3 the pair's: each of its rows has a problem in common with another set.
    assert made == {"sft": ["p0", "p1"], "rft": ["p0", "p1"], "sft_plus": ["p3", "p5"]}
    assert [row.completion[0].content for row in read(run, "sft")] == ["Directly \\boxed{0}", "Directly \\boxed{2}"]
    told = summary(run)
    assert told["rows"] == 2 and told["decided_by"] == "sft_plus"
    assert {name: size["available"] for name, size in told["sets"].items()} == {"sft": 4, "rft": 3, "sft_plus": 2}
    assert told["direct"] == {"correct": 4, "wrong": 2}
    assert told["only_with_answer"] == {"not_solved": 2, "given": 2, "wrong": ["p5"], "truncated": []}
    assert "of 2 problems that the Oracle did not solve directly it was given 2" in out
    assert "corrected 1: p5\n" in out and "sft.jsonl: 2 of 4 right direct answers" in out
    with Ledger(run / "ledger.sqlite") as ledger:
        assert [(line.stage, line.requests) for line in ledger.lines()] == [("sft", 6)]


def test_cut_again_takes_neither_key_nor_server(run: Path, spot: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(solves) as server:
        assert spot(f"rectify.base_url={server.url}")[0] == 0
    before = {path: path.read_bytes() for path in (run / "sets").iterdir()}
    monkeypatch.delenv("BIG_KEY")
    assert spot()[0] == 0
    assert before == {path: path.read_bytes() for path in (run / "sets").iterdir()}
    code, out, _ = spot("--sets", "rft,sft", "--rows", "3")
    assert code == 0 and not (run / "sets/sft_plus.jsonl").exists()
    assert [row.problem_id for row in read(run, "sft")] == [row.problem_id for row in read(run, "rft")]
    assert "3 problems are in both sft and rft" in out and summary(run)["decided_by"] == "--rows"


def test_what_got_no_reply_is_asked_again_and_nothing_else(run: Path, spot: Spot) -> None:
    def refuses(seen: Seen) -> Answer:
        return failure(400, "not this one") if "0 + 0" in seen.question else solves(seen)

    with FakeServer(refuses) as server:
        code, out, _ = spot(f"rectify.base_url={server.url}")
    assert code == 0 and "1 direct answers have no verdict" in out
    assert "p0" not in [row.problem_id for row in read(run, "sft")]
    with FakeServer(solves) as server:
        assert spot(f"rectify.base_url={server.url}")[0] == 0
    assert [seen.question for seen in server.seen] == ["What is 0 + 0?"]
    assert summary(run)["direct"] == {"correct": 4, "wrong": 2}


def test_the_account_of_the_run_has_the_last_word(run: Path, spot: Spot) -> None:
    with FakeServer(solves) as server:
        limit = ["rectify.output_price=1000", "rectify.max_new_tokens=1000", "rectify.max_cost=0.5"]
        code, _, errors = spot(f"rectify.base_url={server.url}", *limit)
    assert code == 3 and errors.startswith("stopped: max_cost") and errors.count("\n") == 1
    assert not server.seen and not (run / "sets").exists()


@pytest.mark.parametrize("oracle", ["scripted", "import", "self", "mine:oracle"])
def test_an_oracle_without_answers_of_its_own_is_told(run: Path, spot: Spot, oracle: str) -> None:
    configure(run, oracle=oracle)
    code, out, errors = spot()
    assert code == 0, errors
    assert out.startswith("sft: skipped, the Oracle ") and out.count("skipped") == 1
    assert not (run / "sets/sft.jsonl").exists() and len(read(run, "rft")) == len(read(run, "sft_plus")) == 2
    assert list(summary(run)["skipped"]) == ["sft"] and summary(run)["only_with_answer"] is None
    code, _, errors = spot("--sets", "sft")
    assert code == 2 and errors.startswith("error: --sets sft: the Oracle")


def test_an_oracle_that_solves_nothing_is_still_measured(run: Path, spot: Spot) -> None:
    with FakeServer(lambda seen: completion("I do not know")) as server:
        code, out, _ = spot(f"rectify.base_url={server.url}")
    assert code == 0 and out.startswith("sft: asking big 6 questions directly; what it costs: spot ledger run\n")
    assert "sft: skipped, none of 6 direct answers of the Oracle is right\n" in out
    assert summary(run)["only_with_answer"] == {"not_solved": 6, "given": 3, "wrong": ["p3", "p5"], "truncated": []}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"with_answer": False}, "corrections were made without it"),
        ({"model": "other"}, "by another Oracle (model:big)"),
    ],
)
def test_what_the_known_answer_brought_is_not_guessed(run: Path, spot: Spot, made: dict[str, Any], why: str) -> None:
    configure(run, **made)
    with FakeServer(solves) as server:
        code, out, _ = spot(f"rectify.base_url={server.url}", "rectify.with_answer=true")
    assert code == 0 and why in out and why in summary(run)["not_measured"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "3"], "--rows 3: the set sft_plus has only 2 (corrections of the pairs); ask for fewer, or leave"),
        (["--sets", "rft", "--rows", "4"], "--rows 4: the set rft has only 3"),
        (["--sets", "rtf"], "--sets rtf: unknown set 'rtf'; known: sft, rft, sft_plus"),
        (["--sets", ","], "--sets ,: no set"),
        (["filter.gamma=1"], "does not read that setting"),
        (["rectify.modle=x"], "did you mean 'mode'?"),
        (["rectify.model=null"], "rectify.model is not set"),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_asked(
    run: Path, spot: Spot, arguments: list[str], message: str
) -> None:
    code, _, errors = spot(*arguments)
    assert code == 2 and message in errors and errors.count("\n") == 1, errors
    assert not (run / "sets").exists() and not (run / "oracle_attempts.jsonl").exists()


def test_a_set_that_is_not_there_yet_is_named(run: Path, spot: Spot) -> None:
    write_rows(run / "attempts.jsonl", [attempt(n, correct=False) for n in range(6)])
    code, _, errors = spot()
    assert code == 2 and "the set rft is empty: no right answers of the student; leave it out with" in errors
    (run / "pairs.jsonl").unlink()
    code, _, errors = spot("--sets", "sft_plus")
    assert code == 2 and "pairs.jsonl: not there yet, the stage 'filter' makes it" in errors
    (run / "config.yaml").unlink()
    assert "run: not a run directory" in spot()[2]


def test_the_first_right_sample_of_a_problem_is_taken() -> None:
    attempts = [attempt(1, True, 2), attempt(0, True, 1), attempt(1, True, 1), attempt(1, False, 0)]
    found = right_answers(PROBLEMS, attempts, "student")
    assert [(row.problem_id, row.meta["from"]) for row in found] == [("p0", "p0#1"), ("p1", "p1#1")]


def test_names_come_in_one_order() -> None:
    assert parse_names("sft_plus, sft") == ["sft", "sft_plus"]


def examples(ids: Sequence[int]) -> list[Example]:
    return [Example(id=f"{n}", problem_id=f"p{id}", prompt=[], completion=[], meta={}) for n, id in enumerate(ids)]


def test_problems_that_more_sets_have_are_kept_first() -> None:
    sets: dict[SetName, list[Example]] = {
        "sft": examples([0, 1, 2, 3, 4, 5]),
        "rft": examples([2, 4]),
        "sft_plus": examples([1, 1, 3, 4]),
    }
    kept = {name: [row.problem_id for row in rows] for name, rows in cut(sets, 2).items()}
    assert kept == {"sft": ["p1", "p4"], "rft": ["p2", "p4"], "sft_plus": ["p1", "p4"]}


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_a_cut_keeps_the_order_and_repeats_a_problem_last(one: list[int], other: list[int]) -> None:
    sets: dict[SetName, list[Example]] = {"rft": examples(sorted(one)), "sft_plus": examples(sorted(other))}
    size = min(len(one), len(other))
    for name, kept in cut(sets, size).items():
        places = [int(row.id) for row in kept]
        assert len(places) == size and places == sorted(set(places))
        distinct = len({row.problem_id for row in sets[name]})
        assert len({row.problem_id for row in kept}) == min(size, distinct)


def test_trl_trains_on_the_sets(run: Path, spot: Spot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with FakeServer(solves) as server:
        assert spot(f"rectify.base_url={server.url}")[0] == 0
    from datasets import load_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    for name in SET_NAMES:
        file = str(run / "sets" / f"{name}.jsonl")
        data: Any = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
        args = SFTConfig(str(tmp_path / "out"), max_length=512, max_steps=1, save_strategy="no", **settings)
        trainer = SFTTrainer(model=make_model(), args=args, train_dataset=data, processing_class=tokenizer)
        tokenized: Any = trainer.train_dataset
        for row, example in zip(tokenized, read(run, name), strict=True):
            ids, labels = row["input_ids"], row["labels"]
            trained: Any = tokenizer.decode([label for label in labels if label != -100])
            assert example.completion[0].content in trained and example.prompt[0].content not in trained
            assert example.prompt[0].content in str(tokenizer.decode(ids))
        trainer.train()
