r"""LaTeX that lost a backslash: `\times`, typed by hand into a JSON string, is a tab and `imes`.

JSON reads `\t \f \b \r \n` as control characters, and commands of LaTeX begin with each of these letters. A program
writes the same escapes before ordinary words (`\nu = 2` is a new line of a calculation as often as a Greek letter), so
a slip is told by the letters that follow, to the last one, and, where these are a word or a name of their own, by what
stands around them. `tests/test_escapes.py` has both sides: commands as they are typed, and real texts as a program
writes them.
"""

import re
from collections.abc import Iterator

_CONTROL = {
    "t": ("\t", "a tab"),
    "f": ("\f", "a form feed"),
    "b": ("\b", "a backspace"),
    "r": ("\r", "a carriage return"),
    "n": ("\n", "a line break"),
}

# Commands whose rest is no word: a slip wherever they stand.
_CERTAIN = """
    times textbf textit textrm texttt textsf textsc textup textnormal textstyle textcolor theta triangle
    triangleq triangleleft triangleright trianglelefteq trianglerighteq tilde tbinom therefore thinspace
    thickspace tiny thickapprox thicksim twoheadrightarrow frac forall flat frown fbox footnotesize fcolorbox
    flushleft fallingdotseq beta beth bar begin bf bfseries big bigl bigr bigm bigg biggl biggr binom bmod
    bmatrix boxed boldsymbol bold bot bowtie breve bullet bumpeq because backslash backsim between bigcap bigcup
    bigcirc bigoplus bigotimes bigodot bigsqcup biguplus bigvee bigwedge bigstar blacksquare boxplus boxtimes
    boxdot bra braket bm right rightarrow rightarrowtail rightharpoonup rightleftharpoons rightleftarrows
    rightsquigarrow rho rangle rfloor rceil rvert rbrace rbrack rgroup rmoustache restriction require
    renewcommand risingdotseq root rule raisebox rtimes nabla natural nearrow nwarrow newcommand newline notin
    nolimits nonumber normalsize noindent nobreakspace nolinebreak negthinspace nsubseteq nsupseteq ncong
    nleqslant ngeqslant nleftrightarrow nLeftarrow nRightarrow nLeftrightarrow nVdash nvDash nVDash
    ntriangleleft ntrianglelefteq
"""
# Commands whose rest may be a word or a name: what has to stand around it, on the same line of the text; `@` is its
# place. A real backslash is two of them in JSON. A letter alone is a variable; with a hyphen or a bracket after it, it
# is a word's or a list item's.
_LETTER = r"[A-Za-z\u0370-\u03ff](?![^\W_]|['.:)-])"
_COMMAND = r"\\\\[A-Za-z]"
_VALUE = rf" ?(?:{_COMMAND}|[-+]?\d+(?!\w| ?=)|{_LETTER})"
_RELATIONS = (
    "neq nmid nless ngtr nleq ngeq nsim nprec nsucc "
    "nparallel nsubset nsupset nrightarrow nleftarrow nvdash nshortmid nshortparallel"
)
_BY_CONTEXT = {
    **dict.fromkeys(_RELATIONS.split(), rf"[\w)}}\]$] ?@(?:{_VALUE}| [({{])"),
    "ne": rf"[\w)] ?@{_VALUE}",
    "nu": r"\"@\Z|[\w)}^_{] ?@(?:[}$]|[.;]?\Z)|[\w),=] @ ?(?:is|are|be|and|in|[=<>+*/-])(?!\w)",
    **dict.fromkeys(("neg", "nexists"), rf"@ ?(?:{_COMMAND}|{_LETTER})"),
    "not": rf"@ ?(?:{_COMMAND}|[=<>])",
    "to": rf"[A-Za-z)}}\]$] ?@(?:{_VALUE}| ?[-+] ?{_COMMAND})",
    **dict.fromkeys(("tan", "tanh"), rf"@ ?(?:{_COMMAND}|[({{^]|\d|{_LETTER})"),
    "tau": rf"\"@\Z|@(?:[{{^_=)}}$]| ?(?:{_COMMAND}|\d|[=+*/<>^_]))",
    "top": r"\^\{?@",
    "tfrac": rf"@(?:[{{\d]|{_COMMAND})",
    **dict.fromkeys(("text", "tag", "ref"), r"@\*? ?\{"),
    "rm": r"\{@ ",
}
# Inside `$...$` or `\(...\)` on one line these are what they look like, too.
_IN_FORMULA = frozenset(("nu", "neq", "not", "nleq", "ngeq", "tau", "to", "top", "tan"))

_CERTAIN_COMMANDS = frozenset(_CERTAIN.split())
_TOKEN = re.compile(r'\\(?:u[0-9A-Fa-f]{4}|.)|"', re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]*")
_REST = re.compile(r'(?:[^"\\]|\\(?!n(?!(?:u|eq|ot|abla|otin)(?![A-Za-z]))).)*', re.DOTALL)  # of the same line
_UNKNOWN = re.compile(r'\\(?:u(?![0-9A-Fa-f]{4})|[^"\\/bfnrtu])[A-Za-z]*')


def slip(line: str) -> str | None:
    r"""The first escape in the JSON text `line` that spells a command of LaTeX, with what to write instead."""
    for _, letter, rest in _slips(line):
        command, (_, what) = letter + rest, _CONTROL[letter]
        spared = rf" (where {what} is meant, put a space after \{letter})" if letter in "tn" else ""
        return rf"\{command} is read as {what} and {rest!r}; write \\{command}, with two backslashes{spared}"
    return None


def unknown(line: str) -> str | None:
    r"""The first backslash in the JSON text `line` that means nothing in JSON, with its word: `\sqrt`."""
    for token in _TOKEN.finditer(line):
        if found := _UNKNOWN.match(line, token.start()):
            return found[0]
    return None


def spelled_out(line: str) -> str:
    r"""The JSON text `line` with each escape that `slip` would object to as `\u0009`: the same value, beyond doubt."""
    while found := next(_slips(line), None):
        place, letter, _ = found
        line = f"{line[:place]}\\u{ord(_CONTROL[letter][0]):04x}{line[place + 2 :]}"
    return line


def _slips(line: str) -> Iterator[tuple[int, str, str]]:
    """Place, letter and rest of each slip in `line`."""
    start = 0  # of the line, within its string
    for token in _TOKEN.finditer(line):
        escape = token[0][1:]
        if escape in _CONTROL:
            rest = _LETTERS.match(line, token.end())
            assert rest is not None
            if _is_slip(escape + rest[0], line[start : token.start()], line, rest.end()):
                yield token.start(), escape, rest[0]
                continue
        if escape in ("n", "r", "u000a", "u000A"):
            start = token.end()
        elif not escape:
            start = token.start()  # with its quote: what stands there begins no line


def _is_slip(command: str, before: str, line: str, end: int) -> bool:
    """Whether an escape spells `command`, with `before` in front of it on its line and what follows from `end` on."""
    if command in _CERTAIN_COMMANDS:
        return True
    if command not in _BY_CONTEXT:
        return False
    rest = _REST.match(line, end)
    after = "" if rest is None else rest[0]
    if command in _IN_FORMULA and _in_formula(before, after):
        return True
    return re.search(_BY_CONTEXT[command].replace("@", "\0"), f"{before[-8:]}\0{after}") is not None


def _in_formula(before: str, after: str) -> bool:
    """Whether a formula within a line, of JSON text, opens in `before` and ends in `after`."""
    if before.replace("$$", "").count("$") % 2 and "$" in after.replace("$$", ""):
        return True
    return before.rfind(r"\\(") > before.rfind(r"\\)") and r"\\)" in after
