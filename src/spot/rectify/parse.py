"""From an Oracle's raw reply to what it wrote: exactly one marked block, or, for a plain prompt, the reply itself.

What is found is then looked through for what no student would write (`flaw`): talk about the correction, a leak of the
known answer, another language.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from spot.schema import Mode

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SYLLABLES = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
_FEWEST_SYLLABLES = 3
_SEARCH, _GAP, _DIVIDER, _REPLACE = _INNER = ("<<<<<<< SEARCH", ".......", "=======", ">>>>>>> REPLACE")


@dataclass(frozen=True)
class Markers:
    """The lines that structure a reply.

    `start` and `end` enclose the result and hold the nonce. Inside it an edit is the lines `search`, `divider` and
    `replace`, the old text between the first two, the new text between the last two; the line `gap` stands for a middle
    that is left out. These hold the nonce where `tagged`: every edit repeats them, so they are kept short where no text
    can be taken for them.
    """

    nonce: str
    tagged: bool = False

    @property
    def start(self) -> str:
        """The line above the result."""
        return f"<result-{self.nonce}>"

    @property
    def end(self) -> str:
        """The line below the result."""
        return f"</result-{self.nonce}>"

    @property
    def search(self) -> str:
        """The line above an edit's old text."""
        return self._inner(_SEARCH)

    @property
    def gap(self) -> str:
        """The line for what is left out of an edit's old text."""
        return self._inner(_GAP)

    @property
    def divider(self) -> str:
        """The line between an edit's old and new text."""
        return self._inner(_DIVIDER)

    @property
    def replace(self) -> str:
        """The line below an edit's new text."""
        return self._inner(_REPLACE)

    def _inner(self, line: str) -> str:
        return f"{line} {self.nonce}" if self.tagged else line

    def clash(self, text: str) -> bool:
        """Whether a part of `text` could be taken for a marker."""
        return self.nonce in text or (not self.tagged and any(line in text for line in _INNER))

    def enclose(self, text: str) -> str:
        """`text` as a result: what `extract_block` finds."""
        return f"{self.start}\n{text}\n{self.end}"

    @classmethod
    def derive(cls, row_id: str, salt: str, *material: str, mode: Mode = "rewrite", attempt: int = 0) -> "Markers":
        """Markers that a row's `attempt`-th request in `mode` always gets and that occur nowhere in `material`.

        So a student's text cannot forge them, and the request (hence the key of its reply) is the same in every run.
        The nonce is made of syllables: a model writes three of them with 3 tokens, twelve hexadecimal digits with 11.
        It grows until it does not occur.
        """
        tagged = any(line in text for text in material for line in _INNER)
        syllables = _FEWEST_SYLLABLES
        while True:
            parts = repr((salt, row_id, mode, attempt, syllables))
            number = int.from_bytes(hashlib.shake_128(parts.encode("utf-8", "surrogatepass")).digest(2 * syllables))
            nonce = ""
            for _ in range(syllables):
                number, index = divmod(number, len(_SYLLABLES))
                nonce += _SYLLABLES[index]
            if not any(nonce in text for text in material):
                return cls(nonce, tagged)
            syllables += 1


@dataclass(frozen=True)
class Parsed:
    """What the Oracle wrote, or `None` and the reason.

    Reasons: `no_block`, `foreign_markers` (only some with another nonce: the student's, or invented), `unclosed`,
    `several_blocks`, `nested_blocks`, `empty`.
    """

    text: str | None
    reason: str = ""


# What a complaint about each reason tells the Oracle (see `spot.rectify.prompting.render_tell_back`).
REASONS = {
    "no_block": "it holds neither of the two marker lines that the result has to stand between",
    "foreign_markers": "its marker lines are not the ones that were given",
    "unclosed": "one of the two marker lines is missing, or they stand in the wrong order",
    "several_blocks": "it holds more than one result: each marker line may be written once only",
    "nested_blocks": "it holds a result within a result: each marker line may be written once only",
    "empty": "there is nothing between the two marker lines",
}

_ANY_MARKER = re.compile(r"</?result-\w+>")


def extract_block(reply: str, markers: Markers) -> Parsed:
    """The text of the one marked block in `reply`, without the white space around it.

    A leading think block is skipped: drafts in it do not count.
    """
    answer = _after_thinking(reply)
    pattern = f"{re.escape(markers.start)}|{re.escape(markers.end)}"
    order = "".join("S" if found == markers.start else "E" for found in re.findall(pattern, answer))
    if order != "SE":
        return Parsed(None, _disorder(order, answer))
    text = answer.partition(markers.start)[2].partition(markers.end)[0].strip()
    return Parsed(text) if text else Parsed(None, "empty")


def _disorder(order: str, answer: str) -> str:
    if not order:
        return "foreign_markers" if _ANY_MARKER.search(answer) else "no_block"
    if order in ("S", "E", "ES"):
        return "unclosed"
    half = len(order) // 2
    return "nested_blocks" if order == "S" * half + "E" * half else "several_blocks"


def plain_reply(reply: str) -> Parsed:
    """The whole of `reply`, without a leading think block and the white space around it: it needs no markers."""
    text = _after_thinking(reply).strip()
    return Parsed(text) if text else Parsed(None, "empty")


def _after_thinking(reply: str) -> str:
    thought, closed, rest = reply.partition("</think>")
    if not reply.lstrip().startswith("<think>"):
        # Templates that open the block themselves leave only its end in the reply.
        return rest if closed and "<think>" not in thought else reply
    return rest if closed else ""


def flaw(text: str, response: str, problem: str) -> str:
    """Why the corrected answer `text` cannot pass for the student's own: `meta_phrase`, `other_language`, or `""`."""
    if meta_phrase(text, response, problem) is not None:
        return "meta_phrase"
    return "other_language" if other_language(text, response, problem) else ""


_KNOWN = r"(?:given|right|correct|known|stated|target|expected|desired|required|reference|provided)"

# What a student who got it right at the first try would not write: it speaks of a correction, of another text, of the
# Oracle's task, or of an answer that was known before. Kept narrow: "the original solution" is chemistry, "the error
# is 2%" is measuring, and a false alarm costs a pair that was paid for.
_META = re.compile(
    r"(?<!\w)(?:"
    + "|".join(
        (
            # another text beside this one
            r"(?:corrected|rectified|revised|amended) (?:answer|solution|response|attempt|version|text|reasoning)",
            r"(?:corrected|rectified|revised|amended) (?:derivation|calculation|steps?)",
            r"student(?:'s|\u2019s)? (?:answer|solution|response|attempt|work|mistake|error)",
            r"the student (?:wrote|said|made|forgot|missed|mistakenly|incorrectly|wrongly)",
            r"(?:original|initial|incorrect) (?:answer|response|attempt)|previous (?:response|attempt)",
            r"rest of the (?:answer|solution|response) (?:is|stays?|remains?)",
            # an answer known before
            r"(?:reference|ground[- ]truth|known|expected|provided|official|target|gold(?:en)?) (?:final )?answer",
            r"(?:reference|official|sample) solution|answer (?:key|sheet)|right final answer|marking scheme",
            rf"(?:match(?:es|ing)?|agree(?:s|ing)? with|consistent with|in line with|equal to) the {_KNOWN} (?:final )?"
            r"(?:answer|result)",
            r"the (?:final |correct |right )?answer (?:that )?(?:is|was) (?:already )?(?:known|given|provided|stated)"
            r" (?:as|to us|above|in the)",
            r"(?:we|I) (?:already )?know (?:that )?the (?:final|correct|right)(?: final)? answer",
            # the correction itself
            r"here(?:'s|\u2019s| is) the (?:correct|right|fixed|updated)\b[^.\n]*",
            r"(?:the|my|a|an) (?:mistake|error) (?:was|here)|(?:the|my|a) mistake is",
            r"(?:I|we) made an? (?:mistake|error)|(?:I|we)(?: have|'ve|\u2019ve)? (?:corrected|rectified|revised)",
            r"(?:I|we)(?: have|'ve|\u2019ve)? (?:only )?(?:fixed|edited|changed) (?:the|this) "
            r"(?:mistake|error|step|line|sentence|calculation|final answer)",
            r"let(?: me| us|'s|\u2019s) (?:correct|fix|rectify|revise) (?:this|that|it|the)",
            r"(?:my apologies|I apologi[sz]e)|correction:",
            # the Oracle's task
            r"as (?:a|your) teaching assistant|teaching assistant|as an AI",
        )
    )
    + r")(?!\w)",
    re.IGNORECASE,
)


def meta_phrase(text: str, *material: str) -> str | None:
    """The first phrase in `text` that betrays a correction, or `None`.

    A phrase that already occurs in `material` (the problem, the student's own answer) betrays nothing.
    """
    own = "\n".join(material).lower()
    for match in _META.finditer(text):
        if match.group().lower() not in own:
            return match.group()
    return None


# Greek and the letter-like symbols are mathematics in any language, so they are no writing here.
_SCRIPTS = """LATIN CJK HIRAGANA KATAKANA HANGUL CYRILLIC ARABIC HEBREW DEVANAGARI BENGALI GUJARATI GURMUKHI TAMIL
TELUGU KANNADA MALAYALAM SINHALA THAI LAO MYANMAR KHMER TIBETAN GEORGIAN ARMENIAN ETHIOPIC MONGOLIAN"""
_WRITING = frozenset(_SCRIPTS.split())
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]+")
# Frequent words of languages that share a script; a word that is frequent in another one, too, is left out.
_FUNCTION_WORDS = {
    word: language
    for language, words in {
        "en": "the and of she that this then are with has each his they therefore from have which there",
        "de": "der das und ist wir nicht mit dann sind ein eine einen von den für wird daher auf sich auch",
        "fr": "le les et est nous des une donc dans avec sont sur du qui cette alors ensuite",
        "es": "el los las es por una tenemos entonces del respuesta tanto cada",
        "it": "il che è sono quindi gli abbiamo della di nel ogni questo risposta",
        "pt": "os é são uma então temos não resposta portanto",
        "nl": "het een zijn dus voor niet wordt heeft elke",
    }.items()
    for word in words.split()
}


def other_language(text: str, response: str, problem: str = "") -> bool:
    """Whether `text` is written in another script or language than the student's `response`.

    A script counts as new from 3 letters and 5% of the letters on, as lost where it had 10 letters and 10%. Languages
    of one script are told apart by their function words, where both texts have enough of them. `problem` stands in
    where `response` has no letters, or no language that can be told.
    """
    new, old = _scripts(text), _scripts(response) or _scripts(problem)
    if new and old:
        for script, count in new.items():
            if count >= 3 and count >= 0.05 * new.total() and old[script] < 0.01 * old.total():
                return True
        for script, count in old.items():
            if count >= 10 and count >= 0.1 * old.total() and new[script] < 0.01 * new.total():
                return True
    languages = _language(text), _language(response) or _language(problem)
    return None not in languages and languages[0] != languages[1]


def _scripts(text: str) -> Counter[str]:
    """Letters by script."""
    return Counter(script for letter in _COMMAND.sub(" ", text) if (script := _script(letter)))


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    name = unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""
    return name if name in _WRITING else ""


def _language(text: str) -> str | None:
    """The language whose function words stand in `text` at least 5 times, 3 different ones and twice any other's."""
    words = [word for word in _WORD.findall(_COMMAND.sub(" ", text).lower()) if word in _FUNCTION_WORDS]
    counts = Counter(_FUNCTION_WORDS[word] for word in words)
    if not counts:
        return None
    (language, most), *others = counts.most_common(2)
    kinds = sum(_FUNCTION_WORDS[word] == language for word in set(words))
    return language if most >= 5 and kinds >= 3 and all(2 * count <= most for _, count in others) else None
