"""The numbers of a run in words: formats, names, and the account that the page and the terminal share."""

import unicodedata
from collections.abc import Mapping, Sequence

from spot.evaluate.comparison import Change, Comparison
from spot.evaluate.statistics import direction
from spot.report.summary import Summary

MINUS = "\N{MINUS SIGN}"
READINGS = {"rose": "rose", "fell": "fell", "level": "no significant change"}
FEW_QUESTIONS = 30
MANY_TASKS = 5  # from here on a sentence names the changes alone and leaves the intervals to the table
# The lab's families: in tables and figures, and in a sentence.
_TITLES = {"in_domain": "In-domain", "ood": "Out-of-domain", "instructions": "Instructions"}
_PHRASES = {
    "in_domain": "in-domain questions",
    "ood": "out-of-domain questions",
    "instructions": "instruction following",
}


def title(name: str, given: str = "") -> str:
    """How a task is called in tables and figures: the lab's families in words, others as they are `given` or named."""
    return _TITLES.get(name) or one_line(given or name)


def reason_title(reason: str) -> str:
    """How a reason for dropping rows is called: `not_verified` reads `not verified`."""
    return one_line(reason.replace("_", " "))


def one_line(text: str, limit: int = 200) -> str:
    """`text` without control characters or line breaks, cut to `limit` characters."""
    flat = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text[: 4 * limit])
    flat = " ".join(flat.split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def whole(value: float) -> str:
    """An integer with thousands separated: `12,345`."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal: `48.5%`."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A signed difference of fractions in percentage points, one decimal, without unit: `+34.3`, `−0.5`, `0.0`."""
    text = f"{abs(100 * value):.1f}"
    sign = "" if float(text) == 0 else "+" if value > 0 else MINUS
    return sign + text


def bounds(change: Change) -> str:
    """The interval of a difference in points: `−0.5 to +1.5`."""
    return f"{points(change.low)} to {points(change.high)}"


def moved(count: int | None) -> str:
    """How many questions went from wrong to right, or back; a dash where an older version did not count them."""
    return "–" if count is None else whole(count)


def duration(seconds: float) -> str:
    """A time as a person would say it: `0.8 s`, `42 s`, `2 min 5 s`, `1 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    if whole_seconds < 3600:
        return f"{whole_seconds // 60} min {whole_seconds % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in binary units: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def plural(count: int, noun: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{whole(count)} {noun}" if count == 1 else f"{whole(count)} {noun}s"


def account(summary: Summary) -> list[str]:
    """What was done and what came of it, sentence by sentence; claims a rise or a fall only where it is shown."""
    return [*_work(summary), *outcome(summary)]


def _work(summary: Summary) -> list[str]:
    counts = summary.counts
    student = one_line(summary.student)
    if not counts.problems:
        asked = f"{plural(counts.attempts, 'answer')} by {student} {'was' if counts.attempts == 1 else 'were'} taken in"
    elif counts.attempts == counts.problems:
        asked = f"{student} answered {plural(counts.problems, 'problem')}"
    else:
        asked = f"{student} gave {plural(counts.attempts, 'answer')} to {plural(counts.problems, 'problem')}"
    ends = [f"{whole(counts.wrong)} {'was' if counts.wrong == 1 else 'were'} wrong"]
    ends += [f"{whole(counts.truncated)} ran into the length limit"] if counts.truncated else []
    ends += [f"{whole(counts.unscored)} could not be scored"] if counts.unscored else []
    asked += f"; {listed(ends)}."
    become = "became a training pair" if counts.pairs == 1 else "became training pairs"
    kept = (
        f"The Oracle ({one_line(summary.oracle)}) corrected {whole(counts.rectified)} of the wrong answers so that the "
        f"final answer verified, and {whole(counts.pairs)} of these corrections {become} "
        f"(change ratio at most {summary.change_ratio.gamma:g})."
    )
    steps = summary.training.steps
    trained = (
        f"The student was trained with {one_line(summary.objective)} for {plural(steps, 'step')}."
        if steps
        else "No training took place."
    )
    return [asked, kept, trained]


def outcome(summary: Summary) -> list[str]:
    """What the evaluation shows, sentence by sentence."""
    if not summary.evaluation:
        return ["Nothing was evaluated, so this run does not show whether the student became better or worse."]
    results = {_PHRASES.get(name, title(name, result.title)): result for name, result in summary.evaluation.items()}
    groups: dict[str, list[str]] = {"rose": [], "fell": [], "level": []}
    for name, result in results.items():
        groups[direction(result.difference.low, result.difference.high)].append(name)
    sentences: list[str] = []
    for kind in ("rose", "fell"):
        if groups[kind]:
            moves = [f"on {name}{_move(results[name], len(results))}" for name in groups[kind]]
            sentences.append(f"Accuracy {kind} {listed(moves)}.")
    if groups["level"]:
        moves = [f"on {name}{_move(results[name], len(results))}" for name in groups["level"]]
        worst = min(groups["level"], key=lambda name: results[name].difference.low)
        possible = f"{-100 * results[worst].difference.low:.1f} points"
        why = (
            f"these intervals include zero, and a drop of up to {possible} ({worst})"
            if len(moves) > 1
            else f"the interval includes zero, and a drop of up to {possible}"
        )
        sentences.append(f"No significant change {listed(moves)}: {why} is not ruled out.")
    if len(results) > 1 and not groups["fell"]:
        sentences.append("No significant drop on any task.")
    return sentences + _caveats(results, summary)


def _caveats(results: Mapping[str, Comparison], summary: Summary) -> list[str]:
    sentences: list[str] = []
    for name, result in summary.evaluation.items():
        for part, comparison in result.slices.items():
            if direction(comparison.difference.low, comparison.difference.high) == "fell":
                sentences.append(f"Within {title(name, result.title)}, “{one_line(part)}” fell{_move(comparison)}.")
    few = [f"{name} ({result.difference.n})" for name, result in results.items() if result.difference.n < FEW_QUESTIONS]
    if few:
        sentences.append(f"Fewer than {FEW_QUESTIONS} questions, so read with care: {listed(few)}.")
    return sentences


def _move(result: Comparison, tasks: int = 1) -> str:
    change = result.difference
    if tasks >= MANY_TASKS:
        return f" ({points(change.mean)} points)"
    return (
        f" ({percent(result.before.mean)} to {percent(result.after.mean)}, "
        f"{points(change.mean)} points, 95% interval {bounds(change)})"
    )


def apart(summary: Summary) -> str:
    """Evaluated answers that score 0 without having been judged wrong, by task; empty where there are none."""
    return ", ".join(
        f"{title(name, result.title)} {whole(number)} {what} {when}"
        for name, result in summary.evaluation.items()
        for when, side in (("before", result.before), ("after", result.after))
        for number, what in ((side.truncated, "cut off"), (side.unscored, "unscored"))
        if number
    )


def transitions(summary: Summary) -> str:
    """How many questions of each task went from wrong to right and back; empty where an older version did not count."""
    moves = [
        f"{title(name, result.title)} {whole(change.gained)} and {whole(change.lost)}"
        for name, result in summary.evaluation.items()
        if (change := result.difference).gained is not None and change.lost is not None
    ]
    return f"Questions wrong before and right after (0→1), and the reverse (1→0): {'; '.join(moves)}." if moves else ""


def listed(items: Sequence[str]) -> str:
    """Items as a list in a sentence: `a`, `a and b`, `a, b, and c`."""
    if len(items) < 3:
        return " and ".join(items)
    return ", ".join(items[:-1]) + ", and " + items[-1]


def either(items: Sequence[str]) -> str:
    """Items of which any might be meant: `a`, `a or b`, `a, b, or c`."""
    return listed(items).replace(" and ", " or ")
