"""Who judges the steps of a run's pairs: a judge model where the config names one, else the lab, and what they say."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from spot.audit.agreement import Counts, LabelledAnswer, agreement, compared, labels_hash, read_labels
from spot.audit.judge import JudgeModel, Replies, open_judge, pair_changes, pair_question
from spot.audit.question import RIGHT, Question
from spot.audit.split import one_line
from spot.audit.steps import Judge, step_changes
from spot.audit.summary import Agreement, JudgeSummary, StepChange, read_audit
from spot.config import RunConfig
from spot.errors import UserError
from spot.files.store import RunDirectory
from spot.models.paid.ledger import Ledger
from spot.plugin import REGISTERED, call
from spot.progress import bar
from spot.schema import Pair, Problem, text_of

NO_JUDGE = (
    "only the lab's steps can be checked exactly; for other problems name a judge model in the section judge "
    "(docs/audit.md)"
)


@dataclass(frozen=True)
class Judged:
    """The steps of pairs by the pair's id; why the others have none; the judge model and, in the lab, the exact one.

    `not_measured` says why the steps must not be summed up; empty where they may.
    """

    steps: Mapping[str, list[StepChange]] = field(default_factory=dict[str, list[StepChange]])
    unjudged: Mapping[str, str] = field(default_factory=dict[str, str])
    model: JudgeSummary | None = None
    exact: Judge | None = None
    not_measured: str = NO_JUDGE


def judge_steps(
    run: RunDirectory,
    config: RunConfig,
    pairs: Sequence[Pair],
    problems: Mapping[str, Problem],
    labels: Path | None,
    console: Console,
) -> Judged:
    """Judge the steps of all `pairs` that have a problem.

    A judge model is first compared with `labels`, where they are given; else with what the run's last audit has found
    of the very same judge. Raises `UserError` for labels without a judge model, and what asking raises.
    """
    rows = None if labels is None else read_labels(labels)
    with Ledger(run / "ledger.sqlite") as ledger:
        judge = open_judge(config, ledger)
        if judge is None:
            if rows is not None:
                raise UserError("--judge_labels: there is no judge to compare with them; set judge.model and base_url")
            return _by_the_lab(config, pairs, problems)
        if rows is None or labels is None:
            measured = _kept_agreement(run, judge)
            why = f"how far the judge {judge.name} agrees with labels is not known; give it some with --judge_labels"
        else:
            replies = _asked(judge, [_labelled_question(judge, row) for row in rows], "judge: labels", console)
            measured = _compared(judge, rows, replies, labels_hash(labels))
            why = _why_not_compared(len(rows), replies)
        found = _by_the_model(judge, measured, pairs, problems, console)
        return replace(found, not_measured=why) if measured is None else found


def exact_judge(config: RunConfig, problems: Mapping[str, Problem]) -> Judge | None:
    """The first registered judge of steps that can judge some of `problems`; `None` where there is none."""
    judges = (
        call("step judge", name, problems.values(), **config.problems.options) for name in REGISTERED["step judge"]
    )
    return next((judge for judge in judges if judge is not None), None)


def _by_the_lab(config: RunConfig, pairs: Sequence[Pair], problems: Mapping[str, Problem]) -> Judged:
    judge = exact_judge(config, problems)
    if judge is None:
        return Judged()
    found: dict[str, list[StepChange]] = {}
    for pair in pairs:
        problem = problems.get(pair.problem_id)
        changes = step_changes(judge, problem, text_of(pair.rejected), text_of(pair.chosen)) if problem else None
        if changes is not None:
            found[pair.id] = changes
    return Judged(found, exact=judge, not_measured="" if found else NO_JUDGE)


def _by_the_model(
    judge: JudgeModel,
    measured: Agreement | None,
    pairs: Sequence[Pair],
    problems: Mapping[str, Problem],
    console: Console,
) -> Judged:
    asked = [pair for pair in pairs if pair.problem_id in problems]
    questions = {pair.id: pair_question(judge, pair, problems[pair.problem_id]) for pair in asked}
    replies = _asked(judge, list(questions.values()), "judge", console)
    steps = {id: pair_changes(questions[id], verdicts) for id, verdicts in replies.verdicts.items()}
    unjudged = dict(replies.unjudged) | {pair.id: "no_problem" for pair in pairs if pair.problem_id not in problems}
    summary = JudgeSummary(
        model=judge.name,
        prompt_version=judge.prompt_version,
        settings=judge.settings,
        agreement=measured,
        pairs=len(steps),
        unjudged=dict(Counter(unjudged.values()).most_common()),
    )
    why = "" if steps else f"no pair could be judged ({_told_reasons(unjudged.values())})"
    return Judged(steps, unjudged, summary, not_measured=why)


def _why_not_compared(rows: int, replies: Replies) -> str:
    if replies.verdicts:
        return "no labelled step is among those that a judge is asked about: those from the first that differs on"
    return f"none of {rows} labelled rows could be judged ({_told_reasons(replies.unjudged.values())})"


def _told_reasons(reasons: Iterable[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


def _asked(judge: JudgeModel, questions: Sequence[Question], title: str, console: Console) -> Replies:
    with bar(console, title) as progress:
        return judge.ask(questions, progress.update)


def _kept_agreement(run: RunDirectory, judge: JudgeModel) -> Agreement | None:
    """What the last audit of this run has found of the same judge."""
    try:
        last = read_audit(run.path)
    except UserError:  # it is about to be replaced
        return None
    if last is None or last.judge is None:
        return None
    same = (last.judge.model, last.judge.prompt_version, last.judge.settings)
    return last.judge.agreement if same == (judge.name, judge.prompt_version, judge.settings) else None


def _compared(judge: JudgeModel, rows: Sequence[LabelledAnswer], replies: Replies, labels: str) -> Agreement | None:
    """The judge's verdicts on labelled rows against their labels."""
    counts, differing = dict[str, Counts](), list[str]()
    for row in rows:
        verdicts = replies.verdicts.get(row.id)
        if verdicts is None:
            continue
        question = _labelled_question(judge, row)
        for steps, numbers in zip((row.steps, row.other), question.asked, strict=True):
            labelled, said = steps[question.shared :], [verdicts[number] for number in numbers]
            counts[row.id] = counts.get(row.id, Counts()) + compared(labelled, said)
            differing += [
                f"{row.id}: {step.text!r} is labelled {_verdict(bool(step.right), step.kind)}, judged "
                f"{_verdict(kind == RIGHT, kind)}"
                for step, kind in zip(labelled, said, strict=True)
                if step.right is not None and step.right != (kind == RIGHT)
            ]
    return agreement(counts, replies.unjudged, differing, labels)


def _verdict(right: bool, kind: str) -> str:
    return "right" if right else f"wrong ({kind})" if kind else "wrong"


def _labelled_question(judge: JudgeModel, row: LabelledAnswer) -> Question:
    sides = [[one_line(step.text) for step in steps] for steps in (row.steps, row.other)]
    return judge.question(row.id, row.prompt, row.answer, *sides)
