"""What a question says, whatever its dress: tokens of its text without case, spacing, or ways to typeset a formula."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

GRID = "\N{WHITE SQUARE}"
"""An empty cell of a board: elsewhere a full stop says nothing, there it says where the discs are."""

_NO_SPACE = "\0"
"""Parts tokens, and not words: a formula without white space is one word."""

# Signs and the commands of LaTeX that print them; signs that say nothing here, such as those for products, have none.
_COMMANDS = """
    infty pm mp div sqrt sum prod int partial in notin subset subseteq supset supseteq emptyset cup cap setminus wedge
    vee neg forall exists angle triangle perp parallel mid nmid nabla approx equiv cong sim simeq propto oplus otimes
    ll gg lfloor rfloor lceil rceil langle rangle implies iff leftrightarrow mapsto leftarrow
"""
_SIGNS = "∞±∓÷√∑∏∫∂∈∉⊂⊆⊃⊇∅∪∩∖∧∨¬∀∃∠△⊥∥∣∤∇≈≡≅∼≃∝⊕⊗≪≫⌊⌋⌈⌉⟨⟩⇒⇔↔↦←"
_NAMED = {ord(sign): f"{_NO_SPACE}{name}{_NO_SPACE}" for sign, name in zip(_SIGNS, _COMMANDS.split(), strict=True)}

# Applied in this order, to text in lower case.
_REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\begin\{[a-z*]+\}|\\end\{[a-z*]+\}", _NO_SPACE),
        (r"(?<!\d)(\d{1,3}(?:\s*(?:,|\{,\}|\\,)\s*\d{3})+)(?!\d)", lambda found: re.sub(r"\D", "", found[1])),
        (r"\\\\(?:\[[^\]]*\])?", _NO_SPACE),  # a new line in an array
        (r"\\[()\[\],;:!> ]|\$+|~", _NO_SPACE),
        (r"\\[dtc]frac\b|\\[dtc]frac(?=\d)", r"\\frac"),
        (r"\\[dt]binom", r"\\binom"),
        (r"\\(frac|binom)\s*(\d)\s*(\d)", rf"{_NO_SPACE}\1 \2 \3{_NO_SPACE}"),
        (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-z])", _NO_SPACE),
        (
            r"\\(?:displaystyle|textstyle|limits|nolimits|q?quad|thinspace|hfill|noindent|par|rm|bf|it)(?![a-z])",
            _NO_SPACE,
        ),
        (
            r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|bb|cal|scr|frak)|operatorname\*?|mbox|boldsymbol|emph)(?![a-z])",
            _NO_SPACE,
        ),
        (r"\\[hv](?:space|skip)\*?\{[^}]*\}", _NO_SPACE),
        (r"\\(?:cdot|times|[lc]?dots[cbmio]?|circ|degree|ast|prime)(?![a-z])", _NO_SPACE),
        (r"\\var(?=(?:epsilon|theta|pi|rho|sigma|phi|kappa)(?![a-z]))", _NO_SPACE),
        (r"\\ell(?![a-z])", f"{_NO_SPACE}l{_NO_SPACE}"),
        (r"\\varnothing(?![a-z])", f"{_NO_SPACE}emptyset{_NO_SPACE}"),
        (r"\\leq(?:slant)?(?![a-z])|≤", f"{_NO_SPACE}le{_NO_SPACE}"),
        (r"\\geq(?:slant)?(?![a-z])|≥", f"{_NO_SPACE}ge{_NO_SPACE}"),
        (r"\\neq(?![a-z])|≠", f"{_NO_SPACE}ne{_NO_SPACE}"),
        (r"\\(?:long)?rightarrow(?![a-z])|→", f"{_NO_SPACE}to{_NO_SPACE}"),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        ("[\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}]", "-"),
    )
)
# Powers and indices of a number are no digits of it.
_RAISED = re.compile("[²³¹⁰-⁹₀-₉]+")
# A few Greek letters are variables, more of them a word.
_VARIABLES = re.compile(r"(?<![α-ω])[α-ω]{1,3}(?![α-ω])")
_CELLS = re.compile(r"(?<!\S)(?:\S\s+){3,}\S(?!\S)")
_EMPTY = re.compile(r"(?<!\S)\.(?!\S)")
# A number; one CJK character; a word, or a letter of a formula; a sign that makes another formula of the same numbers.
_TOKEN = re.compile(r"\d+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\d_]+|[-+/=<>%\N{WHITE SQUARE}]")
_SPACE = re.compile(r"\s+")
_BREAK = re.compile(r"[\n:\"“”«»`#|]|\*\*|[.?!。?!][)\]'’*]*(?:\s|$)")


@dataclass(frozen=True)
class Wording:
    """Tokens in order, the number of the word (between white space) that each stands in, and where each could open a
    sentence (`opens` has one entry more: whether the end closes one, which it does)."""

    tokens: Sequence[str]
    words: Sequence[int]
    opens: Sequence[bool]

    def __getitem__(self, part: slice) -> "Wording":
        start, stop, _ = part.indices(len(self.tokens))
        return Wording(self.tokens[start:stop], self.words[start:stop], self.opens[start : stop + 1])

    @cached_property
    def num_words(self) -> int:
        """Words, or where a formula without spaces has more of them, its tokens that are no signs."""
        spanned = self.words[-1] - self.words[0] + 1 if self.words else 0
        return max(spanned, sum(token.isalnum() for token in self.tokens))

    @cached_property
    def numbers(self) -> list[str]:
        """Its numbers in digits, in order."""
        return [token for token in self.tokens if token.isdigit()]

    @cached_property
    def joined(self) -> str:
        """All tokens in one string: what is left of a text when no space counts. Neighbouring numbers stay apart."""
        return "".join(self._pieces)

    @cached_property
    def places(self) -> list[int]:
        """Where in `joined` each token begins, and its length."""
        places = [0]
        for piece in self._pieces:
            places.append(places[-1] + len(piece))
        return places

    @cached_property
    def _pieces(self) -> list[str]:
        after = [False, *(token.isdigit() for token in self.tokens)]
        return [
            f" {token}" if token.isdigit() and last else token for token, last in zip(self.tokens, after, strict=False)
        ]


def _board(run: re.Match[str]) -> str:
    """Single signs in a row, in which full stops are cells where there are several: a formula may end in one."""
    return _EMPTY.sub(GRID, run[0]) if len(_EMPTY.findall(run[0])) > 2 else run[0]


def _names(letters: re.Match[str]) -> str:
    """The names of Greek letters as LaTeX spells them."""
    names = (unicodedata.name(letter).rpartition(" ")[2].casefold() for letter in letters[0])
    return "".join(f"{_NO_SPACE}{name.replace('lamda', 'lambda')}{_NO_SPACE}" for name in names)


def wording(text: str) -> Wording:
    """The wording of `text`: case, white space, punctuation, and LaTeX that only spaces or sizes do not count; letters
    and signs in Unicode are the commands of LaTeX that print them."""
    text = _RAISED.sub(rf"{_NO_SPACE}\g<0>{_NO_SPACE}", text.replace(_NO_SPACE, " "))
    text = unicodedata.normalize("NFKC", text).casefold().translate(_NAMED)
    text = _VARIABLES.sub(_names, text)
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    text = _CELLS.sub(_board, text)
    tokens: list[str] = []
    words: list[int] = []
    opens: list[bool] = []
    end = word = 0
    for found in _TOKEN.finditer(text):
        gap = text[end : found.start()]
        word += len(_SPACE.findall(gap))  # a word may be a sign that says nothing here
        tokens.append(found[0])
        words.append(word)
        opens.append(not opens or _BREAK.search(gap) is not None)
        end = found.end()
    return Wording(tokens, words, [*opens, True])
