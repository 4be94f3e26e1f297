"""From an Oracle's raw reply to the corrected answer: exactly one marked block, free of talk about the correction."""

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Markers:
    """The two lines that a result stands between."""

    start: str
    end: str

    @classmethod
    def derive(cls, attempt_id: str, salt: str, *material: str) -> "Markers":
        """Markers that the same attempt always gets and that occur nowhere in `material`.

        So a student's text cannot forge them, and the request (hence the key of its reply) is the same in every run.
        """
        round_number = 0
        while True:
            digest = hashlib.sha256(repr((salt, attempt_id, round_number)).encode("utf-8", "surrogatepass"))
            nonce = digest.hexdigest()[:12]
            if not any(nonce in text for text in material):
                return cls(start=f"<result-{nonce}>", end=f"</result-{nonce}>")
            round_number += 1


@dataclass(frozen=True)
class Parsed:
    """The block's text, or `None` and the reason: `no_block`, `unclosed`, `several_blocks`, `empty`."""

    text: str | None
    reason: str = ""


def extract_block(reply: str, markers: Markers) -> Parsed:
    """The text of the one marked block in `reply`, without the white space around it.

    A leading think block is skipped: drafts in it do not count.
    """
    answer = _after_thinking(reply)
    starts, ends = answer.count(markers.start), answer.count(markers.end)
    if starts == 0 and ends == 0:
        return Parsed(None, "no_block")
    if starts > 1 or ends > 1:
        return Parsed(None, "several_blocks")
    before, _, rest = answer.partition(markers.start)
    if starts == 0 or ends == 0 or markers.end in before:
        return Parsed(None, "unclosed")
    text = rest.partition(markers.end)[0].strip()
    return Parsed(text) if text else Parsed(None, "empty")


def _after_thinking(reply: str) -> str:
    if not reply.lstrip().startswith("<think>"):
        return reply
    _, closed, rest = reply.partition("</think>")
    return rest if closed else ""


# What a student who got it right at the first try would not write: it speaks of a correction, of another text, of the
# Oracle's task, or of an answer that was known before. Kept narrow: "the original solution" is chemistry, "the error
# is 2%" is measuring, and a false alarm costs a pair that was paid for.
_META = re.compile(
    r"\b(?:"
    + "|".join(
        (
            r"(?:corrected|rectified|revised) (?:answer|solution|response|attempt|version|text|reasoning|derivation)",
            r"student(?:'s|\u2019s)? (?:answer|solution|response|attempt)",
            r"(?:original|initial|incorrect) (?:answer|response|attempt)|previous (?:response|attempt)",
            r"(?:reference|ground[- ]truth|known|expected|provided|official) (?:final )?answer",
            r"(?:reference|official) solution|answer (?:key|sheet)|right final answer",
            r"here(?:'s|\u2019s| is) the (?:correct|right|fixed)\b[^.\n]*",
            r"(?:the|my|a) mistake (?:was|is|here)",
            r"(?:I|we)(?: have|'ve|\u2019ve)? (?:corrected|rectified|revised)",
            r"let(?: me| us|'s|\u2019s) (?:correct|fix|rectify|revise) (?:this|that|it|the)",
            r"as (?:a|your) teaching assistant",
        )
    )
    + r")\b",
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
