r"""Mathematical answers: the last box, or the data set's own pattern, compared with the known answer.

Integers, plain words and answers that are written alike are settled here, in linear time and in this process.
Everything else is compared by math-verify in killable workers (`spot.verify.pool`). A per cent sign counts as a unit,
as the field's data sets have it: `10\%` answers 10, and 0.1 too.
"""

from collections.abc import Sequence

from spot.schema import Problem, Verdict
from spot.verify import notation
from spot.verify.boxed import last_boxed, last_match
from spot.verify.pool import SHARED

MAX_CHARACTERS = 2000
"""Longer answers that are not plain integers are not compared: no known answer is of that length."""


def verify(response: str, answer: str, pattern: str | None = None) -> Verdict:
    r"""Judge a response by its final answer. Safe in any thread; never raises on what a model wrote.

    Args:
        response: the whole response; think blocks in it are ignored.
        answer: the known answer, LaTeX or plain notation.
        pattern: the data set's own answer pattern, a regular expression with one group (`A:\s*(.+)`); its last match
            is read in place of a box.

    Returns:
        `correct=False` with reason "no answer" where there is none to read; `correct=None` where it cannot be judged:
        a known answer that cannot be read, an answer that is too long, a comparison that timed out or failed.

    Raises:
        UserError: `pattern` is not a regular expression with one group.
        RunFailed: the workers cannot be started on this machine.
    """
    return verify_many([(response, answer)], pattern)[0]


def verify_many(pairs: Sequence[tuple[str, str]], pattern: str | None = None) -> list[Verdict]:
    """`verify` for many `(response, answer)` pairs, in order, with all workers at once."""
    verdicts: list[Verdict | None] = []
    waiting: list[tuple[int, str, str]] = []
    for response, answer in pairs:
        found = last_boxed(response) if pattern is None else last_match(response, pattern)
        given, gold = notation.clean(found or ""), notation.clean(answer)
        verdict = _settle(given, gold)
        if verdict is None:
            waiting.append((len(verdicts), given, gold))
        verdicts.append(verdict)
    judgements = SHARED.judge_many([(gold, given) for _, given, gold in waiting]) if waiting else []
    for (row, given, _), judgement in zip(waiting, judgements, strict=True):
        verdicts[row] = Verdict(correct=judgement.correct, answer=given, reason=judgement.reason)
    return [verdict for verdict in verdicts if verdict is not None]


def verify_problem(response: str, problem: Problem, pattern: str | None = None) -> Verdict:
    """`verify` in the shape of a `Verifier`."""
    return verify(response, problem.answer, pattern)


def _settle(given: str, gold: str) -> Verdict | None:
    """The verdict where the text alone tells; `None` where the expressions must be compared."""
    if not given:
        return Verdict(correct=False, reason="no answer")
    if not gold:
        return Verdict(correct=None, answer=given, reason="the known answer is empty")
    pairs = ((rule(given), rule(gold)) for rule in (notation.integer, notation.words, notation.numeral))
    for given_value, gold_value in pairs:
        if given_value is not None and gold_value is not None:
            return Verdict(correct=given_value == gold_value, answer=given)
    if notation.plain(given) == notation.plain(gold):
        return Verdict(correct=True, answer=given)
    if len(given) > MAX_CHARACTERS or len(gold) > MAX_CHARACTERS:
        return Verdict(
            correct=None, answer=given, reason=f"too long to compare ({max(len(given), len(gold))} characters)"
        )
    return None
