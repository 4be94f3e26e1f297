"""IFEval's verifier: each kind of instruction followed and broken, lm_eval's own verdicts, hangs, no network."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spot.errors import RunFailed
from spot.schema import Problem, Verdict
from spot.verify import ifeval
from spot.verify.ifeval import PROGRAM, missing, verify
from spot.verify.pool import Pool
from spot.verify.resolve import resolve

SHARED_DATA = Path(os.environ.get("SPOT_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
DATA = SHARED_DATA / "ifeval" / "input_data.jsonl"
UNKNOWN = json.dumps({"id": "no:such"})
needs_checkers = pytest.mark.skipif(bool(missing()), reason=missing() or "installed")
needs_data = pytest.mark.skipif(not DATA.is_file(), reason=f"{DATA} is not here")
SPLITTING = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
# Runs of blanks cost the postscript's pattern their square.
HANG = " " * 300_000

Instruction = tuple[str, dict[str, Any]]
NO_COMMA: Instruction = ("punctuation:no_comma", {})
POSTSCRIPT: Instruction = ("detectable_content:postscript", {"postscript_marker": "P.S."})
JSON: Instruction = ("detectable_format:json_format", {})


def asked(*instructions: Instruction) -> Problem:
    names, kwargs = [name for name, _ in instructions], [some for _, some in instructions]
    return Problem(id="p", prompt="?", answer=", ".join(names), meta={"instruction_id_list": names, "kwargs": kwargs})


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool of one worker that gives up soon."""
    pool = Pool(num_workers=1, cpu_seconds=1.5, wall_seconds=120, program=PROGRAM)
    monkeypatch.setattr(ifeval, "SHARED", pool)
    yield pool
    pool.close()


# Kind, its arguments, a response that follows, and one that breaks the instruction by one thing.
KINDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["alpha", "beta"]}, "Alpha, then beta.", "Alpha, then bet."),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        "A cat, a Cat.",
        "A cat, a dog.",
    ),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, "A cat.", "A cat, a cat."),
    ("keywords:forbidden_words", {"forbidden_words": ["never"]}, "Nevertheless.", "Never the less."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "Zoo", "Zoo zone"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "#a #b", "#a b"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "at least"}, "So!", "So."),
    (
        "language:response_language",
        {"language": "de"},
        "Das Wetter ist heute schön, und wir gehen in den Wald.",
        "The weather is fine today, and we walk in the woods.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        "Mr. Smith came. He sat. He left.",
        "Mr. Smith came. He sat and left.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "Dr. Lee paid $3.50 for it. He left.",
        "Dr. Lee paid $3.50 for it. He left. He came back.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n***\nTwo\n***\nThree"),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        "one two three four",
        "one two three",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        "one two three",
        "one two three four",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First this.\n\nThen that.",
        "First this.\n\nNow that.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] at place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write!", "Bye.\nPS. Write!"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. Write!", "Bye.\nP.S. Write!"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n- c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nPart 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '```json\n{"a": 1,}\n```'),
    ("detectable_format:title", {}, "<<Ode>>\nText", "<Ode>\nText"),
    ("combination:two_responses", {}, "One\n******\nTwo", "One\n******\nOne"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "Say hi. Hi!", "You say: Say hi. Hi!"),
    ("startend:end_checker", {"end_phrase": "The end."}, "He left. The end.", "He left. The end. Really."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "This is VERY GOOD.",
        "This is VERY Good.",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "This IS well-MADE work.",
        "THIS IS well-MADE work.",
    ),
    ("change_case:english_capital", {}, "THIS IS ALL IN CAPITAL LETTERS.", "THIS IS ALL In CAPITAL LETTERS."),
    ("change_case:english_capital", {}, "WE WALK IN THE WOODS TODAY.", "WIR GEHEN HEUTE IN DEN WALD."),
    ("change_case:english_lowercase", {}, "this is all in small letters.", "this is all in Small letters."),
    ("punctuation:no_comma", {}, "No pause at all.", "No pause, at all."),
    ("startend:quotation", {}, '"All of it."', '"All" of it.'),
]


@needs_checkers
@pytest.mark.parametrize(("name", "kwargs", "follows", "breaks"), KINDS, ids=[f"{kind[0]}-{kind[1]}" for kind in KINDS])
def test_each_kind_followed_and_broken_by_one_thing(
    name: str, kwargs: dict[str, Any], follows: str, breaks: str
) -> None:
    problem = asked((name, kwargs))
    assert verify(follows, problem) == Verdict(correct=True, answer='{"strict": [1], "loose": [1]}')
    broken = verify(breaks, problem)
    assert (broken.correct, broken.reason) == (False, f"not followed: {name}")


def test_the_table_has_all_kinds() -> None:
    assert len({kind[0] for kind in KINDS}) == 25


@needs_checkers
@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        pytest.param("Sure, here it is:\nNo pause.", 0, 1, id="a first line too many"),
        pytest.param("No pause.\nHope this helps, bye!", 0, 1, id="a last line too many"),
        pytest.param("Sure, here:\nNo pause.\nWell, bye!", 0, 1, id="both"),
        pytest.param("No pause.\nWell, this.\nNo pause.", 0, 0, id="a middle line"),
        pytest.param("No pause.", 1, 1, id="none"),
        pytest.param("Only, this", 0, 0, id="nothing is left without it"),
    ],
)
def test_loose_forgives_the_first_and_the_last_line(response: str, strict: int, loose: int) -> None:
    verdict = verify(response, asked(NO_COMMA))
    assert verdict.correct is bool(strict)
    assert verdict.answer == json.dumps({"strict": [strict], "loose": [loose]})


@needs_checkers
def test_loose_forgives_asterisks() -> None:
    verdict = verify('**{"a": 1}**', asked(JSON))
    assert (verdict.correct, verdict.answer) == (False, '{"strict": [0], "loose": [1]}')


@needs_checkers
def test_one_broken_instruction_breaks_the_prompt() -> None:
    verdict = verify("No pause.", asked(NO_COMMA, POSTSCRIPT, ("startend:quotation", {})))
    assert verdict.correct is False
    assert verdict.answer == '{"strict": [1, 0, 0], "loose": [1, 0, 0]}'
    assert verdict.reason == "not followed: detectable_content:postscript, startend:quotation"


@pytest.mark.parametrize("response", ["", " \n\t", "<think>No pause.</think>", "<think>No pause", "a</think>\n"])
def test_an_empty_response_follows_nothing(response: str) -> None:
    assert verify(response, asked(NO_COMMA)) == Verdict(correct=False, reason="no answer")


@needs_checkers
@pytest.mark.parametrize("thought", ["<think>Well, hm, so\n</think>\n\n", "Well, hm\n</think>\n\n"])
def test_thoughts_are_not_judged_nor_the_empty_lines_after_them(thought: str) -> None:
    then = (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
    )
    assert verify(f"{thought}One.\n\nSo two.", asked(NO_COMMA, then)).correct is True
    assert verify(f"{thought}Well, first.\nNo pause.", asked(NO_COMMA)).answer == '{"strict": [0], "loose": [1]}'


@needs_checkers
def test_what_hangs_is_unscored_and_the_others_are_judged(hasty: Pool) -> None:
    start = time.monotonic()
    verdict = verify(f"a,{HANG}b", asked(NO_COMMA, POSTSCRIPT))
    assert time.monotonic() - start < 120
    assert verdict == Verdict(
        correct=None,
        answer='{"strict": [0, null], "loose": [0, null]}',
        reason="not followed: punctuation:no_comma; not judged: detectable_content:postscript (timeout)",
    )
    assert verify("Bye.\nP.S. More", asked(POSTSCRIPT)).correct is True


@needs_checkers
def test_what_sleeps_is_ended_by_the_clock() -> None:
    pool = Pool(num_workers=1, cpu_seconds=60, wall_seconds=0.7, program=PROGRAM)
    assert pool.judge(UNKNOWN, "a").reason == "no such instruction"
    (pid,) = pool.process_ids()
    os.kill(pid, signal.SIGSTOP)
    assert pool.judge(json.dumps({"id": "punctuation:no_comma", "kwargs": {}, "loose": False}), "a").reason == "timeout"
    assert pool.process_ids() == []
    pool.close()


@needs_checkers
@pytest.mark.parametrize(
    ("response", "instruction", "reason"),
    [
        pytest.param("[" * 200_000, JSON, "its checker raised RecursionError", id="nested too deep"),
        pytest.param("a", ("punctuation:no_comma", {"colour": 1}), "its checker raised TypeError", id="unknown kwargs"),
        pytest.param("a", ("keywords:existence", {"keywords": ["("]}), "its checker raised error", id="no expression"),
        pytest.param("a", ("punctuation:no_colon", {}), "no such instruction", id="unknown instruction"),
    ],
)
def test_what_a_checker_cannot_judge_is_unscored(response: str, instruction: Instruction, reason: str) -> None:
    verdict = verify(response, asked(NO_COMMA, instruction))
    assert verdict.correct is None
    assert verdict.answer == '{"strict": [1, null], "loose": [1, null]}'
    assert verdict.reason == f"not judged: {instruction[0]} ({reason})"


@needs_checkers
@pytest.mark.parametrize(
    "response", ["\ud800", "\0", "\u202e right to left", "٣", "a\r\n\u2028", "🙂" * 50_000, "7" * 1_000_000]
)
def test_any_text_is_judged(response: str) -> None:
    problem = asked(*((name, kwargs) for name, kwargs, _, _ in KINDS))
    verdict = verify(response, problem)
    assert verdict.correct is False
    assert verdict.answer is not None and "null" not in verdict.answer
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@needs_checkers
@pytest.mark.parametrize("meta", [{}, {"instruction_id_list": ["a"]}, {"instruction_id_list": ["a"], "kwargs": []}])
def test_a_problem_without_instructions_is_unscored(meta: dict[str, Any]) -> None:
    verdict = verify("a", Problem(id="p", prompt="?", answer="", meta=meta))
    assert (verdict.correct, verdict.answer) == (None, None)
    assert "instruction_id_list" in verdict.reason


def test_a_missing_package_is_unscored_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval, "PACKAGES", ("json", "no_such_package"))
    missing.cache_clear()
    try:
        verdict = verify("a", asked(NO_COMMA))
    finally:
        missing.cache_clear()
    assert verdict.correct is None
    assert verdict.reason == "IFEval's checkers need no_such_package; pip install 'spot-posttraining[ifeval]'"


def test_a_worker_that_does_not_start_is_a_clear_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match="did not start"):
        Pool(num_workers=1, program=PROGRAM).judge("{}", "a")


@needs_checkers
def test_a_worker_that_dies_at_work_is_reported_and_replaced() -> None:
    pool = Pool(num_workers=1, cpu_seconds=120, wall_seconds=120, program=PROGRAM)
    assert pool.judge(UNKNOWN, "a").reason == "no such instruction"
    (pid,) = pool.process_ids()
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    request = {"id": POSTSCRIPT[0], "kwargs": POSTSCRIPT[1], "loose": False}
    judgement = pool.judge(json.dumps(request), f"a{HANG}b")
    assert judgement.correct is None
    assert "died" in judgement.reason
    assert pool.judge(json.dumps(request), "P.S. a").correct is True
    pool.close()


@needs_checkers
def test_many_threads_share_two_workers() -> None:
    problem = asked(NO_COMMA, POSTSCRIPT)
    responses = [f"{n}{',' if n % 3 else ''}\nP.S. {n}" for n in range(60)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda response: verify(response, problem), responses))
    assert [verdict.correct for verdict in verdicts] == [n % 3 == 0 for n in range(60)]
    assert len(ifeval.SHARED.process_ids()) <= 2


@needs_checkers
@pytest.mark.parametrize("text", ["hello", "Hola mundo", "das ist gut ok", "taxi hotel", "chat noir"])
def test_language_detection_is_repeatable(text: str) -> None:
    problem = asked(*(("language:response_language", {"language": code}) for code in ("nl", "es", "de", "so", "fr")))
    first = verify(text, problem)
    assert all(verify(text, problem) == first for _ in range(19))


@needs_checkers
def test_another_worker_detects_the_same_languages(hasty: Pool) -> None:
    problem = asked(("language:response_language", {"language": "nl"}), ("change_case:english_lowercase", {}))
    texts = ["hello", "hola mundo", "das ist gut ok", "taxi hotel", "chat noir"]
    before = [verify(text, problem) for text in texts]
    hasty.close()
    assert [verify(text, problem) for text in reversed(texts)] == before[::-1]


@needs_checkers
def test_the_sentence_model_is_that_of_nltk() -> None:
    """The digest is of the English model in NLTK's `punkt_tab`, as llama-index-core 0.14.25 carries it."""
    from punkt.data import english

    model = [
        *(sorted(some) for some in (english.ABBREV_TYPES, english.COLLOCATIONS, english.SENT_STARTERS)),
        sorted(english.ORTHO_CONTEXT.items()),
    ]
    digest = hashlib.sha256(repr(model).encode()).hexdigest()
    assert digest == "1382107bd665caa2be62ed66f1fd1c89e10d565ee3b4a8b3b4db159b42c6bc5e"


@needs_checkers
@pytest.mark.parametrize(
    ("text", "sentences"),
    # The counts are NLTK's 3.10.4 with its own punkt_tab.
    [
        ("Mr. Smith, of Acme Corp., met Dr. Lee at 5 p.m. on Jan. 5. He left.", 2),
        ("J. R. R. Tolkien wrote it. The U.S. Army read it. I did, too.", 3),
        ("It costs $3.50. Version 2.0.1 is out. See No. 5.", 4),
        ('Really?! "Yes," she said. "Now." (He ran.) And then... nothing. ok', 6),
        ("1. First item\n2. Second item\n\n* Third. Fourth", 4),
        ("One.Two.Three", 1),
        ("Das ist z.B. ein Satz. Und noch einer.", 3),
        ("no mark at all", 1),
    ],
)
def test_sentences_are_counted_as_nltk_does(text: str, sentences: int) -> None:
    def told(relation: str, count: int) -> bool | None:
        return verify(text, asked((SPLITTING[0], {"num_sentences": count, "relation": relation}))).correct

    assert (told("at least", sentences), told("less than", sentences + 1)) == (True, True)


@needs_checkers
def test_no_network_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hasty: Pool) -> None:
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        f"log = open({str(log)!r}, 'a', buffering=1)\n"
        "sys.addaudithook(lambda event, _: event.startswith(('socket.', 'urllib.')) and log.write(event + '\\n'))\n"
        "log.write('watching\\n')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    problem = asked(*((name, kwargs) for name, kwargs, _, _ in KINDS))
    assert verify("One. Two, three!", problem).correct is False
    assert set(log.read_text().split()) <= {"watching", "socket.gethostname", "socket.__new__"}


@needs_checkers
def test_a_connection_is_refused() -> None:
    code = (
        "import socket; from spot.verify.ifeval_checkers import refuse_network\n"
        "server = socket.create_server(('127.0.0.1', 0)); refuse_network()\n"
        "try: socket.create_connection(server.getsockname())\n"
        "except PermissionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "without a network" in done.stdout


def test_found_by_name_and_light_to_import() -> None:
    assert resolve("ifeval")("", asked(NO_COMMA)).correct is False
    code = "import sys, spot.verify.ifeval as _; print([m for m in ('lm_eval', 'nltk', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REFERENCE = """
import json, os, sys
os.environ["LOCAL_RANK"] = "1"
import langdetect
from lm_eval.tasks.ifeval.utils import process_results
langdetect.DetectorFactory.seed = 0
for line in sys.stdin:
    row, response = json.loads(line)
    result = process_results(row, [response])
    strict, loose = (result[f"inst_level_{level}_acc"] for level in ("strict", "loose"))
    levels = [result[f"prompt_level_{level}_acc"] for level in ("strict", "loose")]
    print(json.dumps({"strict": [int(one) for one in strict], "loose": [int(one) for one in loose], "levels": levels}))
"""
TEXTS = (
    "Sure, here you go:\n\n* one, *two* and **three**\n* four [name] [place]\n\n***\n\nP.S. That is all.",
    '"section 1\nthis is all in small letters and without a pause\nsection 2\nso is this"',
    "THIS IS A LOUD ANSWER WITHOUT ANY PAUSE. IT HAS #5 AND A FEW WORDS MORE!\n\nMy answer is yes.",
    '```json\n{"title": "<<Ode>>", "text": ["one", "two"]}\n```',
    "Das Wetter ist heute schön. " * 40,
    "<<A title>>\n\nSECTION 1\n" + "The quick brown fox jumps over the lazy dog. " * 60 + "\n******\nSECTION 2\nOther",
)


@needs_checkers
@needs_data
def test_verdicts_are_those_of_lm_eval() -> None:
    """Beside lm_eval in another process, on each of the 541 prompts; not where it would need a download or draws."""
    asked_for: list[tuple[dict[str, Any], str]] = []
    for number, line in enumerate(DATA.read_text("utf-8").splitlines()):
        row = json.loads(line)
        kept = [
            (name, kwargs)
            for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            if name not in SPLITTING and kwargs.get("letter", "a").isalpha()
        ]
        if kept:
            row["instruction_id_list"], row["kwargs"] = [name for name, _ in kept], [some for _, some in kept]
            prompt, text = row["prompt"], TEXTS[number % len(TEXTS)]
            asked_for += [(row, prompt), (row, prompt[: len(prompt) // 2]), (row, text), (row, f"{prompt}\n{text}")]
    lines = "".join(json.dumps(one) + "\n" for one in asked_for)
    done = subprocess.run([sys.executable, "-c", REFERENCE], input=lines, capture_output=True, text=True, check=True)
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(theirs) == len(asked_for) > 1900
    seen: set[tuple[str, int]] = set()
    for (row, response), known in zip(asked_for, theirs, strict=True):
        verdict = verify(response, Problem(id="p", prompt="?", answer="", meta=row))
        assert verdict.answer is not None
        found = json.loads(verdict.answer)
        assert {**found, "levels": [verdict.correct, all(found["loose"])]} == known, (row["key"], response)
        seen |= set(zip(row["instruction_id_list"], found["strict"], strict=True))
    assert len({name for name, _ in seen}) == 23
    assert len(seen) >= 44, "most kinds are followed by one response and broken by another"
