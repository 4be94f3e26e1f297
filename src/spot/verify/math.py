r"""Mathematical answers: the last box, or the data set's own pattern, compared with the known answer.

Integers, plain words and answers that are written alike are settled here, in linear time and in this process.
Everything else is parsed and compared in killable workers (`spot.verify.pool`). A per cent sign counts as a unit,
as the field's data sets have it: `10\%` answers 10, and 0.1 too.
"""

from collections.abc import Sequence

from spot.schema import Problem, Verdict
from spot.verify import notation
from spot.verify.boxed import last_boxed, last_match
from spot.verify.pool import SHARED


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
    equal = _equal_as_written(given, gold)
    if equal is not None:
        return Verdict(correct=equal, answer=given)
    if notation.plain(given) == notation.plain(gold):
        return Verdict(correct=True, answer=given)
    if len(given) > notation.MAX_CHARACTERS or len(gold) > notation.MAX_CHARACTERS:
        return Verdict(
            correct=None, answer=given, reason=f"too long to compare ({max(len(given), len(gold))} characters)"
        )
    return None


def _equal_as_written(given: str, gold: str) -> bool | None:
    """Whether two integers, choices, words, numerals or times are equal; `None` where they are not both such."""
    for rule in (notation.integer, notation.choice, notation.words):
        given_value, gold_value = rule(given), rule(gold)
        if given_value is not None and gold_value is not None:
            return given_value == gold_value
    if (known := notation.choice(gold)) is not None and (said := notation.choice_with_text(given)) is not None:
        return said == known
    equal = _same_rational(given, gold)
    if equal is None:
        equal = _same_numeral(given, gold)
    return _same_time(given, gold) if equal is None else equal


def _same_rational(given: str, gold: str) -> bool | None:
    """Whether two fractions or decimals are equal, `None` where a decimal may be the other one rounded."""
    known, said = notation.rational(gold), notation.rational(given)
    if known is None or said is None:
        return None
    if known[0] == said[0]:
        return True
    rounded = known[1] or said[1]
    return None if rounded and abs(known[0] - said[0]) < 1e-5 else False


def _same_numeral(given: str, gold: str) -> bool | None:
    """Whether two numerals are equal, `None` unless one names its base. Bare digits are in the known answer's base."""
    known, said = notation.numeral(gold), notation.numeral(given)
    if known is not None and said is not None:
        return known[1] == said[1]
    if known is not None and notation.plain(given).isalnum():
        return notation.plain(given).lower() == known[0]
    number = notation.integer(gold)
    return str(said[1]) == number if said is not None and number is not None else None


def _same_time(given: str, gold: str) -> bool | None:
    """Whether two times of day are equal, `None` unless both are such. Without "a.m." or "p.m." either is meant."""
    known, said = notation.clock(gold), notation.clock(given)
    if known is None or said is None:
        return None
    if known[1] and said[1]:
        return known == said
    return known[0] % 720 == said[0] % 720 if known[1] or said[1] else known == said
