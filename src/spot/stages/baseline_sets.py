"""The other data sets of a run, the paper's baselines: one loss (`sft`), three sources, as many rows of each.

`rft` are the student's own right answers, one a problem. `sft_plus` are the corrections of the pairs. `sft` are the
Oracle's own direct answers that verify; these are asked for here, once, and kept in `oracle_attempts.jsonl`. Rows are
in TRL's conversational prompt-completion format.

All sets are cut to one size. What a set keeps is decided in this order: a problem's first row goes before its second,
a problem that more of the sets hold before one that fewer do, and the run's order settles the rest; so the sets share
as many problems as the cut allows. In the files the rows are in the run's order of problems and samples.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field

from spot.config import RunConfig, SamplingSection, load_config
from spot.errors import UserError
from spot.files.disk import write_atomic
from spot.files.store import RunDirectory, read_rows, write_rows
from spot.models.paid.ledger import Ledger
from spot.schema import Attempt, Message, Pair, Problem, Rectification, Row, as_messages
from spot.stages.elicit import ask
from spot.stages.opening import LazyModel, endpoint, needed, open_verifier, recorded

if TYPE_CHECKING:
    from rich.console import Console

SetName = Literal["sft", "rft", "sft_plus"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
HOLDS = {
    "sft": "right direct answers of the Oracle",
    "rft": "right answers of the student",
    "sft_plus": "corrections of the pairs",
}
SHOWN = 10
"""Ids that are printed; `summary.json` has all."""


class Example(Row):
    """A row of a set, as TRL reads it; `meta` says who wrote the completion and from which row of the run it is."""

    id: str
    problem_id: str
    prompt: list[Message]
    completion: list[Message]
    meta: dict[str, str]


class SetSize(Row):
    """Rows and distinct problems before the cut, and rows written."""

    available: int
    problems: int
    written: int


class OnlyWithAnswer(Row):
    """What the known answer was good for.

    `not_solved` counts the problems whose one direct answer was wrong or cut off; `given` those of them that the Oracle
    was given to correct, with the known answer; `wrong` and `truncated` are the ids of those that it then corrected,
    by what its direct answer was.
    """

    not_solved: int
    given: int
    wrong: list[str]
    truncated: list[str]


class SetsSummary(Row):
    """What `sets/summary.json` holds. `direct` counts the Oracle's direct answers by outcome."""

    rows: int
    decided_by: str
    sets: dict[str, SetSize]
    skipped: dict[str, str]
    shared_problems: dict[str, int]
    direct: dict[str, int] = Field(default_factory=dict)
    only_with_answer: OnlyWithAnswer | None = None
    not_measured: str = ""


def parse_names(text: str) -> list[SetName]:
    """The names in `text`, separated by commas, in the order of `SET_NAMES`; raises `UserError` for another."""
    given = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in given if name not in SET_NAMES]
    if unknown or not given:
        what = f"unknown set {unknown[0]!r}" if unknown else "no set"
        raise UserError(f"--sets {text}: {what}; known: {', '.join(SET_NAMES)}")
    return [name for name in SET_NAMES if name in given]


@dataclass
class _Gathered:
    """The sets before the cut, why some were skipped, and the Oracle's direct answers."""

    sets: dict[SetName, list[Example]] = field(default_factory=dict[SetName, list[Example]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    direct: list[Attempt] = field(default_factory=list[Attempt])


def write_sets(
    run: RunDirectory, config: RunConfig, names: Sequence[SetName], rows: int | None, console: "Console"
) -> SetsSummary:
    """Write the sets `names` and their summary into `sets/` of a run, `rows` of each or as many as the smallest has.

    `config` is the run's, with overrides of `rectify` for asking the Oracle directly. Sets of an earlier call that are
    not written now are taken away, so that what is there is of one size. Raises `UserError` for a set without rows, or
    with fewer than `rows`; what asking the Oracle raises.
    """
    gathered = _gather(run, config, names, rows, console)
    found: dict[SetName, list[Example]] = {name: gathered.sets[name] for name in SET_NAMES if name in gathered.sets}
    smallest = min(found, key=lambda name: len(found[name]))
    size = len(found[smallest]) if rows is None else rows
    chosen = cut(found, size)
    only, why = _only_with_answer(run, config, gathered.direct)
    summary = SetsSummary(
        rows=size,
        decided_by=smallest if rows is None else "--rows",
        sets={
            name: SetSize(available=len(found[name]), problems=len(_problem_ids(found[name])), written=size)
            for name in found
        },
        skipped=gathered.skipped,
        shared_problems=_shared(chosen),
        direct=dict(Counter(attempt.outcome for attempt in gathered.direct)),
        only_with_answer=only,
        not_measured=why,
    )
    _write(run, chosen, summary, console)
    return summary


def _gather(
    run: RunDirectory, config: RunConfig, names: Sequence[SetName], rows: int | None, console: "Console"
) -> _Gathered:
    """Every set that is wanted and can be had, each checked to be large enough; what is paid for comes last."""
    problems = read_rows(_needed_file(run / "problems.jsonl", "elicit", ""), Problem)
    gathered = _Gathered()
    if "rft" in names:
        attempts = read_rows(_needed_file(run / "attempts.jsonl", "elicit", "rft"), Attempt)
        gathered.sets["rft"] = right_answers(problems, attempts, "student")
    if "sft_plus" in names:
        pairs = read_rows(_needed_file(run / "pairs.jsonl", "filter", "sft_plus"), Pair)
        gathered.sets["sft_plus"] = corrected(problems, pairs)
    _check_sizes(gathered.sets, rows)
    if "sft" not in names:
        return gathered
    if not (why := cannot_answer(config)):
        gathered.direct = ask_oracle(problems, config, run, console)
        if examples := right_answers(problems, gathered.direct, "oracle"):
            gathered.sets["sft"] = examples
            _check_sizes(gathered.sets, rows)
            return gathered
        why = f"none of {len(gathered.direct):,} direct answers of the Oracle is right"
    if not gathered.sets:
        raise UserError(f"--sets sft: {why}")
    gathered.skipped["sft"] = why
    console.print(f"sft: skipped, {why}", highlight=False, soft_wrap=True)
    return gathered


def _write(
    run: RunDirectory, chosen: Mapping[SetName, Sequence[Example]], summary: SetsSummary, console: "Console"
) -> None:
    """The files; the summary is away while they change, so that where there is one it speaks of what is there."""
    (run / "sets" / "summary.json").unlink(missing_ok=True)
    for name in SET_NAMES:
        if name in chosen:
            write_rows(set_path(run, name), chosen[name])
        elif set_path(run, name).exists():
            set_path(run, name).unlink()
            path = set_path(run, name)
            console.print(f"{path}: taken away, it was of another cut", highlight=False, soft_wrap=True)
    text = json.dumps(summary.model_dump(mode="json"), indent=2, ensure_ascii=False)
    write_atomic(run / "sets" / "summary.json", text + "\n")


def set_path(run: RunDirectory, name: SetName) -> Path:
    """Where a set is."""
    return run / "sets" / f"{name}.jsonl"


def told(summary: SetsSummary, run: RunDirectory) -> list[str]:
    """The summary in a few lines."""
    lines = [
        f"{set_path(run, name)}: {summary.sets[name].written:,} of {summary.sets[name].available:,} {HOLDS[name]}"
        for name in SET_NAMES
        if name in summary.sets
    ]
    lines += [f"{count:,} problems are in both {pair}" for pair, count in summary.shared_problems.items()]
    if unscored := summary.direct.get("unscored", 0):
        lines.append(
            f"{unscored:,} direct answers have no verdict; those without a reply are asked for by the next call"
        )
    only = summary.only_with_answer
    if only is None:
        lines.append(f"corrected only with the known answer: not measured, {summary.not_measured}")
        return lines
    ids = only.wrong + only.truncated
    more = f" and {len(ids) - SHOWN:,} more (sets/summary.json)" if len(ids) > SHOWN else ""
    listed = f": {', '.join(ids[:SHOWN])}{more}" if ids else ""
    lines.append(
        f"of {only.not_solved:,} problems that the Oracle did not solve directly it was given {only.given:,} to "
        f"correct with the known answer, and corrected {len(ids):,}{listed}"
    )
    return lines


def cannot_answer(config: RunConfig) -> str:
    """Why the run's Oracle gives no direct answers; empty where it does."""
    oracle = config.rectify.oracle
    if oracle == "model":
        return ""
    if oracle == "self":
        return "the Oracle is the student itself, whose direct answers are the set rft"
    return f"the Oracle {oracle!r} corrects answers and gives none of its own (rectify.oracle=model does)"


def ask_oracle(problems: Sequence[Problem], config: RunConfig, run: RunDirectory, console: "Console") -> list[Attempt]:
    """The Oracle's direct answers, one a problem, judged like the student's; only those that are missing are asked for.

    They are kept in `oracle_attempts.jsonl` and paid for through the run's ledger, as the stage `sft`.
    """
    section = config.rectify
    name = needed(section.model, "rectify.model", "the Oracle's name at its endpoint")
    needed(section.base_url, "rectify.base_url", "for example https://host/v1")
    sampling = SamplingSection(
        temperature=section.temperature, top_p=section.top_p, max_new_tokens=section.max_new_tokens
    )
    have = run / "oracle_attempts.jsonl"
    if open_ := len(problems) - (len(read_rows(have, Attempt)) if have.exists() else 0):
        limit = "" if section.max_cost is None else f", for at most ${section.max_cost:g} of the run's ledger"
        what = f"sft: asking {name} {open_:,} questions directly{limit}; what it costs: spot ledger {run.path}"
        console.print(what, highlight=False, soft_wrap=True)
    with Ledger(run / "ledger.sqlite") as ledger:
        # Opened when there is something to ask: to cut the sets anew takes neither a key nor a server.
        model = LazyModel(name, name, lambda: recorded(endpoint(section, name), ledger, "sft", section))
        path = run / "oracle_attempts.jsonl"
        return ask(problems, model, open_verifier(config.problems), sampling, config.run.seed, path, "sft", console)


def right_answers(problems: Sequence[Problem], attempts: Sequence[Attempt], who: str) -> list[Example]:
    """The right ones of `attempts`, the first sample of each problem, in the order of `problems`."""
    first: dict[str, Attempt] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.sample):
        if attempt.outcome == "correct":
            first.setdefault(attempt.problem_id, attempt)
    return [
        _example(problem, attempt.response, {"from": attempt.id, "by": who, "model": attempt.model})
        for problem in problems
        if (attempt := first.get(problem.id)) is not None
    ]


def corrected(problems: Sequence[Problem], pairs: Sequence[Pair]) -> list[Example]:
    """The chosen side of every pair, in the order of `problems` and then of `pairs`."""
    place = {problem.id: number for number, problem in enumerate(problems)}
    if (stray := next((pair for pair in pairs if pair.problem_id not in place), None)) is not None:
        raise UserError(f"pair {stray.id!r} is about the problem {stray.problem_id!r}, which problems.jsonl lacks")
    return [
        Example(
            id=pair.id,
            problem_id=pair.problem_id,
            prompt=as_messages(pair.prompt),
            completion=[Message(role="assistant", content=pair.chosen)]
            if isinstance(pair.chosen, str)
            else list(pair.chosen),
            meta={"from": pair.id, "by": "oracle", "model": pair.oracle},
        )
        for pair in sorted(pairs, key=lambda pair: place[pair.problem_id])
    ]


def _example(problem: Problem, response: str, meta: dict[str, str]) -> Example:
    return Example(
        id=f"{meta['from']}:{meta['by']}",
        problem_id=problem.id,
        prompt=as_messages(problem.prompt),
        completion=[Message(role="assistant", content=response)],
        meta=meta,
    )


def cut(sets: Mapping[SetName, Sequence[Example]], rows: int) -> dict[SetName, list[Example]]:
    """`rows` examples of each set, chosen as this module's first lines say, in the order in which the set has them."""
    held_by = Counter(id for examples in sets.values() for id in _problem_ids(examples))
    chosen: dict[SetName, list[Example]] = {}
    for name, examples in sets.items():
        before: Counter[str] = Counter()
        ranked: list[tuple[int, int, int]] = []
        for number, example in enumerate(examples):
            ranked.append((before[example.problem_id], -held_by[example.problem_id], number))
            before[example.problem_id] += 1
        chosen[name] = [examples[number] for number in sorted(number for *_, number in sorted(ranked)[:rows])]
    return chosen


def _shared(chosen: Mapping[SetName, Sequence[Example]]) -> dict[str, int]:
    """Problems in common, for each two of the sets."""
    ids = {name: _problem_ids(examples) for name, examples in chosen.items()}
    return {f"{one} and {other}": len(ids[one] & ids[other]) for one, other in combinations(ids, 2)}


def _problem_ids(examples: Sequence[Example]) -> set[str]:
    return {example.problem_id for example in examples}


def _check_sizes(found: Mapping[SetName, Sequence[Example]], rows: int | None) -> None:
    for name, examples in found.items():
        if not examples:
            raise UserError(f"the set {name} is empty: no {HOLDS[name]}; {_without(name)}")
        if rows is not None and rows > len(examples):
            raise UserError(
                f"--rows {rows}: the set {name} has only {len(examples)} ({HOLDS[name]}); ask for fewer, or "
                f"{_without(name)}"
            )


def _only_with_answer(
    run: RunDirectory, config: RunConfig, direct: Sequence[Attempt]
) -> tuple[OnlyWithAnswer | None, str]:
    """What the Oracle corrected and did not solve, or why that cannot be told."""
    if not direct:
        return None, "the Oracle was not asked directly"
    if not load_config(run / "config.yaml").rectify.with_answer:  # as it was then, whatever is overridden now
        return None, "the run's corrections were made without it"
    path = run / "rectifications.jsonl"
    rows = read_rows(path, Rectification) if path.exists() else []
    if not rows:
        return None, "the run has no corrections yet"
    if others := {row.oracle for row in rows} - {f"model:{config.rectify.model}"}:
        return None, f"the run's corrections are by another Oracle ({min(others)})"
    outcome_of = {attempt.problem_id: attempt.outcome for attempt in direct}
    not_solved = [id for id, outcome in outcome_of.items() if outcome in ("wrong", "truncated")]
    given = {row.problem_id for row in rows}
    accepted = {row.problem_id for row in rows if row.accepted}
    return OnlyWithAnswer(
        not_solved=len(not_solved),
        given=sum(id in given for id in not_solved),
        wrong=[id for id in not_solved if id in accepted and outcome_of[id] == "wrong"],
        truncated=[id for id in not_solved if id in accepted and outcome_of[id] == "truncated"],
    ), ""


def _without(name: str) -> str:
    return f"leave it out with --sets {','.join(other for other in SET_NAMES if other != name)}"


def _needed_file(path: Path, stage: str, name: str) -> Path:
    if not path.exists():
        fix = f"; or {_without(name)}" if name else ""
        raise UserError(f"{path}: not there yet, the stage {stage!r} makes it{fix}")
    return path
