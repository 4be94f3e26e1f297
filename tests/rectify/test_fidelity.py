"""A text is never altered on its way: random Unicode from a server's body to the pair, through files of every kind."""

import io
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fake_server import Answer, FakeServer, Seen, completion

from spot.config import parse_config
from spot.files.store import read_rows, write_rows
from spot.models.paid.ledger import Ledger
from spot.pairs.filter import make_pairs
from spot.rectify.base import Failure
from spot.rectify.human import HumanOracle, Queue
from spot.rectify.imported import ImportedOracle
from spot.rectify.parse import Markers
from spot.schema import Attempt, Pair, Problem, Rectification, Verdict, text_of
from spot.stages.asking import import_answers
from spot.stages.opening import Asking, open_oracle
from spot.stages.rectify import correct
from spot.terminal import new_console

# What files, parsers and tokenizers have been known to change.
MARKS = [
    *(
        "\0",
        "\r",
        "\r\n",
        "\n\n",
        "\v",
        "\f",
        "\x1c",
        "\x85",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\u00a0",
        "\u3000",
        "\u200b",
    ),
    *(
        "e\u0301",
        "\u00e9",
        "\ufb01",
        "\u212b",
        "\U0001f600",
        "\ufffd",
        "\ufffe",
        "\U0010ffff",
        "&lt;",
        "<b>",
        "{{ x }}",
    ),
    *("\\n", "\\u0041", "\\times", "\times", "\neq 3", "$\nu$", '"', "'", "\\", "%s", "[/x]", " ,", " n't", " .", "  "),
    *("=======", "</think>", "<|im_end|>", "<result-x>", "\t", " ", "\u05d0\u202e", "\x7f", "\x1b[31m"),
]
texts = st.lists(st.one_of(st.sampled_from(MARKS), st.characters(exclude_categories=["Cs"])), min_size=1, max_size=12)
texts = texts.map("".join).filter(lambda text: text.strip() != "")
ALL_MARKS = "".join(MARKS)


def failure_of(number: int, response: str) -> Failure:
    problem = Problem(id=f"p{number}", prompt=f"Question {number}", answer="4")
    attempt = Attempt(
        id=f"p{number}#0", problem_id=problem.id, sample=0, response=response, finish_reason="stop",
        verdict=Verdict(correct=False), model="s",
    )  # fmt: skip
    return Failure(problem, attempt)


def right(response: str, problem: Problem) -> Verdict:
    del response, problem
    return Verdict(correct=True)


def corrected(
    place: Path, failures: list[Failure], contents: dict[int, str], mode: str, ascii_only: bool, again: int = 0
) -> tuple[dict[str, Rectification], list[Pair], int]:
    """Rows and pairs of `spot rectify` and `spot filter`, as they are read from their files, and the requests sent."""

    def script(seen: Seen) -> Answer:
        number = re.search(r"Question (\d+)", seen.question)
        assert number is not None
        nonce = re.search(r"<result-(\w+)>\n", seen.question)
        content = contents[int(number[1])].replace("NONCE", nonce[1] if nonce else "")
        body = json.loads(completion(content).body)
        return Answer(body=json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))

    sent: list[int] = []
    with FakeServer(script) as server:
        rectify = {"model": "o", "base_url": server.url, "mode": mode.partition(".")[0]}
        rectify |= {"prompt": "simplified"} if mode.endswith("plain") else {}
        config = parse_config({"rectify": rectify, "student": {"model": "lab"}}, "test")
        for number in range(1 + again):
            if number == 2:
                (place / "r.jsonl").unlink()  # what was paid for is in the ledger alone
            with Ledger(place / "l.sqlite") as ledger:
                correct(
                    [failure.problem for failure in failures], [failure.attempt for failure in failures],
                    open_oracle(config, Asking(ledger)), right, place / "r.jsonl",
                    new_console(file=io.StringIO()), [],
                )  # fmt: skip
            sent.append(len(server.seen))
    assert sent == sent[:1] * (1 + again)
    rows = read_rows(place / "r.jsonl", Rectification)
    for name in ("pairs.jsonl", "pairs.parquet"):
        pairs = make_pairs(
            [failure.problem for failure in failures], [failure.attempt for failure in failures], rows,
            lambda text: list(text.encode()), gamma=1.0,
        ).pairs  # fmt: skip
        write_rows(place / name, pairs)
        assert read_rows(place / name, Pair) == pairs
    raw = [json.loads(line) for line in (place / "pairs.jsonl").read_bytes().split(b"\n") if line]
    assert [row["chosen"][0]["content"] for row in raw] == [text_of(pair.chosen) for pair in pairs]
    return {row.attempt_id: row for row in rows}, pairs, sent[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.booleans())
@example([f"a{ALL_MARKS}b", ALL_MARKS], True)
@example([f"a{ALL_MARKS}b", ALL_MARKS], False)
def test_what_is_written_anew_is_one_slice_of_the_servers_text(drawn: list[str], ascii_only: bool) -> None:
    failures = [failure_of(number, text[::-1] + "!") for number, text in enumerate(drawn)]
    for mode in ("rewrite", "rewrite.plain"):
        around = "{}" if mode.endswith("plain") else "Here it is:\r\n<result-NONCE>\n{}\n</result-NONCE>\u2028"
        contents = {number: around.replace("{}", text) for number, text in enumerate(drawn)}
        with TemporaryDirectory() as place:
            rows, pairs, _ = corrected(Path(place), failures, contents, mode, ascii_only)
        for number, failure in enumerate(failures):
            row = rows[failure.attempt.id]
            if row.reason in ("", "other_language", "meta_phrase"):
                answer = drawn[number].rpartition("</think>")[2] if mode.endswith("plain") else drawn[number]
                assert row.response in contents[number]
                assert row.response == answer.strip() or "</think>" in drawn[number]
        for pair in pairs:
            number = int(pair.problem_id[1:])
            assert text_of(pair.chosen) == rows[f"p{number}#0"].response
            assert text_of(pair.rejected) == failures[number].attempt.response
        accepted = [row for row in rows.values() if row.accepted]
        assert len(pairs) == sum(row.response != failures[int(row.problem_id[1:])].attempt.response for row in accepted)


@settings(max_examples=25, deadline=None)
@given(texts, texts, texts, st.booleans())
@example(ALL_MARKS, "\t\f\bx\u2028\r\n\u3000", ALL_MARKS[::-1], True)
def test_a_patch_changes_its_place_and_nothing_else(before: str, new: str, after: str, ascii_only: bool) -> None:
    response = f"{before}\n(wrong 1)\n{after}"
    markers = Markers.derive("p0#0", "0", response, "Question 0", "4", mode="patch")
    # Without the format's own lines, and what ends a thought: what stands before that is no part of the answer.
    new = re.sub(r"[<>=.]{7}", "", new.replace("</think>", ""))
    block = f"<result-NONCE>\n{markers.search}\n(wrong 1)\n{markers.divider}\n{new}\n{markers.replace}\n</result-NONCE>"
    with TemporaryDirectory() as place:
        rows, pairs, _ = corrected(Path(place), [failure_of(0, response)], {0: block}, "patch", ascii_only)
    row = rows["p0#0"]
    assert row.reason in ("", "other_language", "meta_phrase", "same_as_rejected", "empty"), row
    assert row.response == f"{before}\n{new}\n{after}"
    assert [text_of(pair.chosen) for pair in pairs] == [row.response] * row.accepted


@pytest.mark.parametrize("half", ["\ud83d", "a\udc00b", "\ude00\ud83d"])
@pytest.mark.parametrize("mode", ["rewrite", "rewrite.plain"])
def test_half_a_surrogate_pair_is_refused_once_and_never_paid_for_again(tmp_path: Path, half: str, mode: str) -> None:
    around = "{}" if mode.endswith("plain") else "<result-NONCE>\n{}\n</result-NONCE>"
    failures, contents = [failure_of(0, "x"), failure_of(1, "y")], {0: around.replace("{}", half), 1: around}
    rows, pairs, sent = corrected(tmp_path, failures, contents, mode, True, again=2)
    assert sent == 2 and rows["p1#0"].accepted and len(pairs) == 1
    assert not rows["p0#0"].accepted and rows["p0#0"].response == "" and "surrogate" in rows["p0#0"].verdict.reason


@settings(max_examples=40, deadline=None)
@given(texts)
@example(ALL_MARKS)
def test_files_and_people_give_back_what_they_were_given(text: str) -> None:
    with TemporaryDirectory() as name:
        place, failure = Path(name), failure_of(0, text[::-1] + "!")
        for kind in ("jsonl", "parquet"):
            attempts = [failure.attempt.model_copy(update={"response": text})]
            write_rows(place / f"a.{kind}", attempts)
            assert read_rows(place / f"a.{kind}", Attempt) == attempts
            problems = [failure.problem.model_copy(update={"prompt": text, "answer": text, "meta": {"m": text}})]
            write_rows(place / f"p.{kind}", problems)
            assert read_rows(place / f"p.{kind}", Problem, by_hand=True) == problems
        (place / "w.jsonl").write_text(json.dumps({"problem_id": "p0", "response": f"{text}\u00df"}), "utf-8")
        found = import_answers(place / "w.jsonl", [failure.problem], right, place / "out.jsonl", "skip", [])
        assert [row.response for row in found] in (
            [f"{text}\u00df"],
            [],
        )  # a slip of the hand is left out, never changed
        write_rows(place / "c.jsonl", attempts)
        oracle = ImportedOracle(place / "c.jsonl")
        assert oracle._by_attempt == {"p0#0": text}  # pyright: ignore[reportPrivateUsage]
        queue = Queue(place / "human.sqlite")
        queue.want([failure])
        queue.save_draft("p0#0", text, "anna")
        queue.submit("p0#0", text, "anna")
        assert queue.answers() == {"p0#0": (text, "")}
        queue.send_back({"p0#0": "look again"})
        human = HumanOracle(place / "human.sqlite")
        assert queue.export_open(human.file) == 1
        assert json.loads(human.file.read_bytes())["response"] == text
        assert queue.submit_file(human.file, "ben") == 0  # nothing was edited
