r"""Multiple choice: the letter that the response states as its answer.

An answer is stated on a line of its own (`Answer: C`, the letter below it too), by a sentence ("the correct answer is
C.") or in a box; the last statement outside think blocks counts. Bold, brackets, dollars and a full stop are read
through. What is stated is compared with the options' own texts before any letter is looked for: the A of "Answer: A
decrease in entropy" is an article. A line that names no option, or several, is no answer; letters elsewhere are never
looked at.
"""

import re
import unicodedata
from collections.abc import Sequence

from spot.schema import Problem, Verdict
from spot.verify.boxed import without_thoughts

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_MARKUP = re.compile(
    r"[*_`$\u200b\u2060\ufeff]|</?(?:b|strong|i|em|u|code)>|\\[()\[\]]"
    r"|\\(?:boxed|fbox|text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|bf|rm|emph|underline)(?![A-Za-z])"
)
_NAME = (
    r"(?:(?:final|correct|best|right|only)[ \t]+){0,3}(?:answer|option|choice)"
    r"(?:[ \t]+(?:choice|option|letter|to[ \t]+\w+[ \t]+\w+))?"
)
_IS = r"[ \t]+(?:is|must[ \t]+be|should[ \t]+be|would[ \t]+be)\b"
_LINE = re.compile(
    r"^[ \t>#{+-]*(?:[0-9]+[.)][ \t]*)?(?:(?:so|thus|hence|therefore)\b[, \t]*)?(?:(?:the|my)[ \t]+)?"
    rf"{_NAME}(?:(?:{_IS})?[ \t]*(?:[:=]|[\u2013\u2014]|-[ \t])[ \t]*(?P<said>.*)|[ \t]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(rf"\b(?:the|my)[ \t]+{_NAME}{_IS}[ \t]*:?[ \t]*(?P<said>.*)$", re.IGNORECASE | re.MULTILINE)
_BOX = re.compile(r"\\boxed[ \t]*\{((?:[^{}]|\{[^{}]*\})*)\}")
_BOXED = re.compile("^\0(?P<said>.*)$", re.MULTILINE)
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|assum\w+|whether|unless)\b[^.;\n]*\Z|\b(?:perhaps|maybe|might|would|could|not)\b[^.;,\n]*\Z", re.I
)
_LETTER = re.compile(r"[\[(]? ?([A-Za-z]) ?[\])]?(?:(?: ?[.:;)(\u2013\u2014-]|(?<=\)))(?P<rest>.*))?")
_REASONED = re.compile(r"[\[(]?([A-Z])[\])]?[ ,;]+(?:because|since|as|which|due)\b.*")
# An article or a pronoun is no other option: "B. A decrease in entropy", and not "B. No, A is right".
_ARTICLE = re.compile(r"\b[AI] (?!(?:is|was|are|or|and|nor|but|seems|looks|would|could|can|may|must|because)\b)[a-z]")


def verify(response: str, problem: Problem) -> Verdict:
    """Judge by the letter. `meta` has the `options`, or in `shown` the order in which this repetition shows them.

    With `shown`, the verdict's answer is the option and not its letter. Without a stated answer, or with
    one that cannot be read, the response is wrong with reason "no answer".
    """
    shown = problem.meta.get("shown")
    options = shown or problem.meta.get("options")
    if not options:
        return Verdict(correct=None, reason="the problem's meta has no options")
    letter = last_letter(response, [str(option) for option in options])
    if letter is None:
        return Verdict(correct=False, reason="no answer")
    return Verdict(correct=letter == problem.answer, answer=shown[LETTERS.index(letter)] if shown else letter)


def last_letter(response: str, options: Sequence[str]) -> str | None:
    """The letter of the last answer that is stated, in upper case; `None` where there is none, or none of `options`."""
    text = unicodedata.normalize("NFKC", without_thoughts(response)).replace("\0", "")
    text = _MARKUP.sub("", _BOX.sub(lambda box: f"\n\0{' '.join(box[1].split())}\n", text))
    statements = [one for form in (_LINE, _SENTENCE, _BOXED) for one in form.finditer(text)]
    texts = [_plain(option) for option in options]
    for statement in sorted(statements, key=lambda one: one.start(), reverse=True):
        said = (statement["said"] or "").strip()
        if statement.re is _LINE and statement["said"] is None:  # a heading over anything
            letter = _letter(_below(text, statement), texts)
        elif statement.re is _LINE:  # some put the letter below; a line that cannot be read takes back what was said
            return _letter(said or _below(text, statement), texts)
        elif statement.re is _SENTENCE:
            before = text[max(0, statement.start() - 100) : statement.start()]
            letter = None if _SUPPOSED.search(before) else _letter_of_sentence(said, texts)
        else:
            letter = _letter(_LINE.sub(lambda line: line["said"] or "", said), texts)
        if letter is not None:
            return letter
    return None


def _below(text: str, statement: re.Match[str]) -> str:
    """The next line that holds something."""
    return text[statement.end() :].lstrip().partition("\n")[0].lstrip("\0 ")


def _letter_of_sentence(said: str, texts: Sequence[str]) -> str | None:
    """The letter where a sentence is about nothing else, or ends after it, or continues with a reason."""
    first = re.split(r"[.;](?:\s|\Z)", said, maxsplit=1)[0]
    if (reasoned := _REASONED.fullmatch(first)) is not None:
        first = reasoned[1]
    for one in (said, first):
        if re.match(r"[a-z]\b", one) is None or _plain(one) in texts:  # "the answer is a matter of taste"
            letter = _letter(one, texts)
            if letter is not None:
                return letter
    return None


def _letter(said: str, texts: Sequence[str]) -> str | None:
    """The letter of the option that a statement names, by the option's text or by its letter with or without it."""
    said = _OPTION.sub("", said.strip(_QUOTES)).rstrip(_QUOTES + ",!\u3002")
    plain = _plain(said)
    if (len(plain) > 1 or not plain.isalpha()) and texts.count(plain) == 1:
        return LETTERS[texts.index(plain)]
    found = _LETTER.fullmatch(said.translate(_BRACES).strip())
    if found is None:
        head, _, rest = said.partition(" ")
        head = head.removesuffix(",")
        place = LETTERS.find(head) if len(head) == 1 else -1
        return head if 0 <= place < len(texts) and _plain(rest) == texts[place] else None
    place = LETTERS.index(found[1].upper())
    if place >= len(texts):
        return None
    rest = _plain(found["rest"] or "").strip("() ")
    own = rest == texts[place] or (rest.startswith(texts[place]) and len(texts[place]) > 1)
    if rest in texts and not own:
        return None
    others = _ARTICLE.sub(" ", found["rest"] or "")
    named = {LETTERS[number] for number in range(len(texts)) if number != place}
    if not own and any(letter in named for letter in re.findall(r"\b[A-Z]\b", others)):
        return None
    return LETTERS[place]


_OPTION = re.compile(r"\A(?:option|choice)\b[ \t]*", re.IGNORECASE)
_QUOTES = " \t'\"\u2018\u2019\u201c\u201d"
_BRACES = {ord(sign): None for sign in "{}"}


def _plain(text: str) -> str:
    """A text as it is compared with another: without markup, brackets of LaTeX, case and a final full stop."""
    text = _MARKUP.sub("", unicodedata.normalize("NFKC", text)).translate(_BRACES)
    return " ".join(text.split()).casefold().removesuffix(".").strip()
