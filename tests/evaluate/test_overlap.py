from spot.evaluate.overlap import overlap_note
from spot.schema import Message, Pair, Problem, Prompt


def pair(prompt: Prompt) -> Pair:
    return Pair(id="x", problem_id="x", prompt=prompt, chosen="b", rejected="c", change_ratio=0.1, oracle="o")


def question(prompt: Prompt) -> Problem:
    return Problem(id=str(prompt), prompt=prompt, answer="1")


def test_the_prompt_counts_and_not_the_id_or_the_format() -> None:
    questions = [question("What is 1?"), question("What is 2?"), question([Message(role="user", content="What is 3?")])]
    pairs = [pair([Message(role="user", content="What is 1?")]), pair("What is 3?\n"), pair("What is 4?")]
    note = overlap_note("held", questions, pairs)
    assert note.startswith("2 of 3 questions of held are among the problems trained on")


def test_a_system_prompt_is_a_wrapper_and_nothing_is_said_of_no_pairs() -> None:
    system = [Message(role="system", content="Be brief."), Message(role="user", content="What is 1?")]
    assert overlap_note("held", [question("What is 1?")], [pair(system)]).startswith("1 of 1 questions of held")
    assert overlap_note("held", [question("What is 1?")], []) == ""
