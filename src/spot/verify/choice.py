"""Multiple choice: the letter on the answer line, and nothing that merely looks like one.

The last line of the form `Answer: C` outside think blocks counts; bold, brackets and a full stop are read through.
A line that names no letter of the question's, or several, is no answer, and letters elsewhere are never looked at.
"""

import re
import unicodedata

from spot.schema import Problem, Verdict
from spot.verify.boxed import without_thoughts

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_MARKUP = re.compile(r"[*_`$]|\\(?:boxed|text|mathrm|mathbf)\b")
_LINE = re.compile(r"^[ \t>#]*(?:the[ \t]+)?(?:final[ \t]+)?answer(?:[ \t]+is)?[ \t]*[:=][ \t]*(.*)$", re.I | re.M)
_LETTER = re.compile(r"[\[({ ]*([A-Z])[\])} ]*(?:[.:)(\u2013\u2014-](?P<rest>.*))?", re.I)


def verify(response: str, problem: Problem) -> Verdict:
    """Judge by the letter. The known answer is one; `meta` has the `options`, or as `shown` the order of this time.

    Where there is such an order the verdict's answer is the option and not its letter. Without an answer line, or with
    one that cannot be read, the response is wrong with reason "no answer".
    """
    shown = problem.meta.get("shown")
    options = shown or problem.meta.get("options")
    if not options:
        return Verdict(correct=None, reason="the problem's meta has no options")
    letter = last_letter(response, len(options))
    if letter is None:
        return Verdict(correct=False, reason="no answer")
    return Verdict(correct=letter == problem.answer, answer=shown[LETTERS.index(letter)] if shown else letter)


def last_letter(response: str, num_options: int) -> str | None:
    """The letter on the last answer line, in upper case; `None` where there is none, or none of `num_options`."""
    text = _MARKUP.sub("", unicodedata.normalize("NFKC", without_thoughts(response)))
    lines = list(_LINE.finditer(text))
    if not lines:
        return None
    line = lines[-1]
    # Some put the letter on a line of its own below.
    statement = line[1].strip() or next(iter(text[line.end() :].split("\n", 2)[1:2]), "").strip()
    found = _LETTER.fullmatch(statement)
    # "A. Paris" names the option too; "A or B" and "A: no, B" name no one letter.
    if found is None or (found["rest"] and re.search(rf"\b[{LETTERS[:num_options]}]\b", found["rest"])):
        return None
    letter = found[1].upper()
    return letter if letter in LETTERS[:num_options] else None
