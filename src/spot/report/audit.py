"""The audit in words: the lines that the page and the terminal share, and what the page says below its figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spot.audit.summary import (
    Agreement,
    AuditSummary,
    Divergence,
    Estimate,
    JudgeSummary,
    LikelihoodSummary,
    Spread,
    StepSummary,
    pairs_hash,
    read_audit,
)
from spot.files.disk import write_atomic
from spot.report import prose
from spot.report.audit_figures import audit_drawings
from spot.report.figures import Drawing

if TYPE_CHECKING:
    from rich.console import Console

DRIFT = 0.02
"""The share of pairs in which a mark must be on one side only to be called drift."""

NOT_MEASURED = "not measured"
_WRONG = "y\N{MINUS SIGN}"


@dataclass(frozen=True)
class Fact:
    """One line: what was measured, its value, and what else there is to know. `bad` marks what wants a look."""

    label: str
    value: str
    detail: str = ""
    bad: bool = False


@dataclass(frozen=True)
class AuditView:
    """What the page shows of an audit; `kinds` are the newly introduced errors as (kind, steps, pairs, learnt)."""

    facts: list[Fact]
    change_reading: str
    likelihood_reading: str
    kinds: list[tuple[str, str, str, str]]
    drawings: list[Drawing]


def audit_view(run: Path) -> AuditView | str | None:
    """The audit of a run to show; a sentence where it is of other pairs than the run's, `None` where there is none."""
    summary = read_audit(run)
    if summary is None:
        return None
    pairs = run / "pairs.jsonl"
    if not pairs.exists() or pairs_hash(pairs) != summary.pairs_hash:
        return "The pairs have changed since they were audited; run spot audit again."
    return AuditView(
        facts=list(facts(summary)),
        change_reading=_change_reading(summary),
        likelihood_reading=_likelihood_reading(summary.likelihood) if summary.likelihood else "",
        kinds=list(_kinds(summary.steps)) if summary.steps else [],
        drawings=audit_drawings(summary),
    )


def write_figures(run: Path, summary: AuditSummary) -> list[Path]:
    """Write the audit's figures into the run's `figures/` and return their paths."""
    paths: list[Path] = []
    for drawing in audit_drawings(summary):
        paths.append(run / "figures" / f"{drawing.name}.svg")
        write_atomic(paths[-1], drawing.file)
    return paths


def facts(summary: AuditSummary) -> Iterator[Fact]:
    """The audit line by line."""
    edits = summary.edits
    yield _line("change ratio (eq. 1)", edits.change_ratio)
    yield _line("edit distance", edits.edit_distance)
    yield _line(f"first edit, share of {_WRONG}", edits.first_edit)
    shared = f"{edits.shared_prefix.median:.0f} + {edits.shared_suffix.median:.0f}"
    yield Fact("shared prefix + suffix", shared, "tokens, medians")
    short = f"; {prose.plural(edits.shortened, 'pair')} below 0.7" if edits.shortened else ""
    length = edits.length_ratio
    yield Fact(f"length, y+ over {_WRONG}", f"{length.median:.2f}", _range(length) + short, bool(edits.shortened))
    yield from _likelihood_facts(summary)
    yield from _step_facts(summary)
    yield from _style_facts(summary)
    same = f"{prose.plural(summary.same_question, 'pair')} on a question of another" if summary.same_question else ""
    yield Fact("duplicate pairs", prose.whole(summary.duplicates), same, bool(summary.duplicates))
    if summary.overlap is None:
        yield Fact("overlap with evaluation", NOT_MEASURED, summary.not_measured["overlap"])
    else:
        found = summary.overlap
        of = f"of {prose.plural(sum(found.tasks.values()), 'question')} ({', '.join(map(prose.title, found.tasks))})"
        pairs = f", by {prose.plural(found.pairs, 'pair')}" if found.pairs else ""
        yield Fact("overlap with evaluation", prose.whole(found.questions), of + pairs, bool(found.questions))


def _line(label: str, values: Spread) -> Fact:
    return Fact(label, f"{values.median:.2f}", _range(values))


def _range(values: Spread) -> str:
    return f"{values.low:.2f} to {values.high:.2f}"


def _likelihood_facts(summary: AuditSummary) -> Iterator[Fact]:
    found = summary.likelihood
    if found is None:
        yield Fact("perplexity", NOT_MEASURED, summary.not_measured["likelihood"])
        return
    sides = f"{found.rejected.perplexity:.2f}, {found.chosen.perplexity:.2f}"
    rest = f"from the first edit on {found.rejected.perplexity_from_edit:.2f}, {found.chosen.perplexity_from_edit:.2f}"
    some = f" ({prose.plural(found.pairs, 'pair')} scored)" if found.pairs < summary.pairs else ""
    yield Fact(f"perplexity of {_WRONG}, y+", sides, rest + some)
    difference = found.divergence
    spread = f"{_signed(difference.low)} to {_signed(difference.high)} nats a token"
    yield Fact(f"surprise, y+ above {_WRONG}", _signed(difference.median), spread)
    if found.kl is None:
        yield Fact("KL(trained ‖ student)", NOT_MEASURED, summary.not_measured["kl"])
    else:
        yield Fact("KL(trained ‖ student), y+", _small(found.kl.mean), _kl(found.kl))


def _kl(kl: Divergence) -> str:
    before = "" if kl.before is None else f"{_small(kl.before)} before the first edit, "
    return f"{before}{_small(kl.from_edit)} from it on"


def _small(value: float) -> str:
    """Two digits of a number that may be any power of ten; what rounding leaves of 0 reads as 0."""
    return f"{value:.2g}" if value >= 5e-5 else "0"


def _step_facts(summary: AuditSummary) -> Iterator[Fact]:
    steps, judge = summary.steps, summary.judge
    if steps is None:
        yield Fact("errors newly introduced", NOT_MEASURED, summary.not_measured["steps"])
        yield from _judge_facts(judge)
        return
    of = f"of {prose.whole(steps.kept + steps.new)} right steps{' from the first edit on' if judge else ''}"
    kinds = ", ".join(f"{error.kind} {prose.whole(error.count)}" for error in steps.kinds[:3])
    more = f", {len(steps.kinds) - 3} more kinds" if len(steps.kinds) > 3 else ""
    detail = f"{of}, in {prose.plural(steps.pairs_with_new, 'pair')}: {kinds}{more}" if steps.new else of
    mistaken = judge.agreement.false_alarms if judge and judge.agreement else None
    if mistaken is None:
        yield Fact("errors newly introduced", prose.whole(steps.new), detail, bool(steps.new))
    else:
        # What a judge calls wrong by mistake it mostly calls so in one of the two answers.
        alone, low, high = ((steps.kept + steps.new) * share for share in (mistaken.value, mistaken.low, mistaken.high))
        detail += f"; its mistakes alone would give about {alone:.0f} ({low:.0f} to {high:.0f})"
        yield Fact("errors newly introduced", prose.whole(steps.new), detail, steps.new > high)
    yield Fact("errors fixed, left", f"{prose.whole(steps.fixed)}, {prose.whole(steps.left)}", "steps")
    yield from _judge_facts(judge)


def _judge_facts(judge: JudgeSummary | None) -> Iterator[Fact]:
    """How far the judge model behind the steps is to be believed, and what it has not judged."""
    if judge is None:
        return
    yield Fact("judge", prose.whole(judge.pairs), f"pairs judged by {judge.model}, prompt {judge.prompt_version}")
    if judge.unjudged:
        reasons = ", ".join(f"{prose.reason_title(reason)} {prose.whole(n)}" for reason, n in judge.unjudged.items())
        yield Fact("pairs not judged", prose.whole(sum(judge.unjudged.values())), reasons, True)
    if judge.agreement is not None:
        yield from _agreement_facts(judge.agreement)


def _agreement_facts(found: Agreement) -> Iterator[Fact]:
    """A judge against labels, each number with its 95% interval."""
    on = f"on {prose.plural(found.steps, 'labelled step')} of {prose.plural(found.rows, 'row')}"
    unjudged = f"; {prose.plural(found.unjudged, 'row')} not judged" if found.unjudged else ""
    yield _share("judge agrees with labels", found.accuracy, on + unjudged)
    if found.recall is not None:
        yield _share("finds of the wrong steps", found.recall, f"of {prose.whole(found.wrong)}")
    if found.precision is not None:
        yield _share("wrong of those it calls so", found.precision, "")
    if found.false_alarms is not None:
        right = prose.whole(found.steps - found.wrong)
        yield _share("calls wrong of the right", found.false_alarms, f"of {right}")
    if found.kappa is not None:
        low, high = (f"{value:.2f}".replace("-", prose.MINUS) for value in (found.kappa.low, found.kappa.high))
        kind = "" if found.same_kind is None else f"; same kind of error in {prose.percent(found.same_kind)}"
        value = f"{found.kappa.value:.2f}".replace("-", prose.MINUS)
        yield Fact("agreement, kappa", value, f"{low} to {high}{kind}", found.kappa.low <= 0)


def _share(label: str, found: Estimate, detail: str) -> Fact:
    bounds = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return Fact(label, prose.percent(found.value), f"{bounds}{detail and ', '}{detail}")


def _style_facts(summary: AuditSummary) -> Iterator[Fact]:
    style = summary.style
    yield _line(f"words of y+ that {_WRONG} has", style.vocabulary)
    words = ", ".join(f"{row.word} {prose.whole(row.brought)}" for row in style.words[:4])
    yield Fact("words brought in", prose.whole(len(style.words)) if words else "none", words and f"{words} pairs")
    drifted = [row for row in style.marks if row.only_rejected + row.only_chosen >= DRIFT * summary.pairs]
    marks = "; ".join(
        f"{row.mark}: only in y+ {prose.whole(row.only_chosen)}, only in {_WRONG} {prose.whole(row.only_rejected)}"
        for row in drifted
    )
    yield Fact("formatting drift", prose.whole(len(drifted)) if drifted else "none", marks, bool(drifted))


def _signed(value: float) -> str:
    text = f"{abs(value):.3f}"
    return ("" if float(text) == 0 else "+" if value > 0 else prose.MINUS) + text


def _change_reading(summary: AuditSummary) -> str:
    edits = summary.edits
    text = (
        "Change ratio over the corrected answer’s tokens, and Levenshtein distance over the longer answer’s, of "
        f"{prose.plural(summary.pairs, 'pair')}."
    )
    if edits.earlier_with_ratio is not None:
        rank = f"{edits.earlier_with_ratio:.2f}".replace("-", prose.MINUS)
        text += f" Rank correlation of change ratio and where the first edit falls: {rank}."
    return text


def _likelihood_reading(found: LikelihoodSummary) -> str:
    text = (
        f"Means a token in bins that double, in nats; the line is the first edit. Under {prose.one_line(found.student)}"
        f", before training, the wrong answers have a perplexity of {found.rejected.perplexity:.2f}, the corrections "
        f"{found.chosen.perplexity:.2f}."
    )
    if found.kl is not None:
        text += f" Training moved it by {_small(found.kl.mean)} nats a token along the corrections: {_kl(found.kl)}."
    return text


def _kinds(steps: StepSummary) -> Iterator[tuple[str, str, str, str]]:
    for error in steps.kinds:
        learnt = (
            "–"
            if error.before is None or error.after is None
            else f"{prose.percent(error.before)} to {prose.percent(error.after)}"
        )
        yield prose.one_line(error.kind), prose.whole(error.count), prose.whole(error.pairs), learnt


def print_audit(summary: AuditSummary, console: "Console") -> None:
    """The audit as one small table; readable at 80 columns and on a console that knows only ASCII."""
    from rich.table import Table

    from spot.report.terminal import Printer

    printer = Printer(console)
    oracles = ", ".join(summary.oracles)
    printer.line(f"Audit of {prose.plural(summary.pairs, 'pair')}, corrected by {oracles}", "bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("", printer.text("median", "dim"), printer.text("5% to 95% of the pairs", "dim"))
    for fact in facts(summary):
        style = "bold red" if fact.bad else "dim" if fact.value == NOT_MEASURED else ""
        table.add_row(printer.text(fact.label), printer.text(fact.value, style), printer.text(fact.detail, "dim"))
    console.print(table)
    if any(error.after is not None for error in (summary.steps.kinds if summary.steps else ())):
        assert summary.steps is not None
        learnt = (f"{kind} {rates}" for kind, _, _, rates in _kinds(summary.steps))
        printer.line(f"Share of such steps in the evaluation’s answers, before to after training: {'; '.join(learnt)}.")
