"""The audit of a run directory: every pair measured, a row each in `audit.jsonl`, and `audit.json` over all of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spot.audit.edits import edits, summarise_edits
from spot.audit.judging import Judged, exact_judge, judge_steps
from spot.audit.labels import labelled_rows
from spot.audit.steps import Judge, Rates, error_rates, summarise_steps
from spot.audit.style import StyleAudit
from spot.audit.summary import (
    ROWS,
    SUMMARY,
    AuditSummary,
    Likelihood,
    LikelihoodSummary,
    OverlapRow,
    OverlapSummary,
    PairAudit,
    pairs_hash,
)
from spot.config import RunConfig
from spot.errors import RunFailed, UserError
from spot.evaluate.overlap import Overlap, overlaps
from spot.files.disk import write_atomic
from spot.files.store import RunDirectory, read_rows, write_rows
from spot.hub import load_model, load_tokenizer, model_path, stop_ids
from spot.pairs.tokens import TEXTS_AT_ONCE, Encoder
from spot.progress import Bar, bar
from spot.schema import Attempt, Pair, Problem, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Questions = Mapping[str, Sequence[Problem]]
"""The evaluation's questions by task."""


@dataclass(frozen=True)
class Scored:
    """The likelihood part: a row for each pair that was scored, by id, and the whole; why there is none."""

    rows: Mapping[str, Likelihood]
    summary: LikelihoodSummary | None
    not_measured: Mapping[str, str]


def audit(
    run: RunDirectory,
    config: RunConfig,
    questions: Questions,
    console: Console,
    *,
    allow_overlap: bool = False,
    skip_models: bool = False,
    labels: Path | None = None,
) -> AuditSummary:
    """Measure the pairs of `run`, whose config is `config`, and write `audit.jsonl` and `audit.json`.

    `questions` are those that the run is, or will be, evaluated on. With `skip_models` no weights are loaded and
    likelihoods are left out. `labels` are rows that the config's judge model is compared with. Raises `UserError` where
    there are no pairs, or where some overlap with `questions` and `allow_overlap` is not given, and what asking the
    judge raises: then nothing is written, but what it replied is in the run's ledger.
    """
    pairs, problems = _read(run)
    found = overlaps(questions, pairs)
    if found and not allow_overlap:
        raise UserError(_refusal(found, questions, len(pairs)))
    tokenizer = load_tokenizer(model_path(config.student.model))
    judged = judge_steps(run, config, pairs, problems, labels, console)
    with bar(console, "likelihood") as progress:
        scored = _scored(run, config, pairs, tokenizer, skip_models, progress)
    with bar(console, "audit") as progress:
        measure = _Measure(Encoder(tokenizer), judged, scored.rows, found if questions else None)
        rows: list[PairAudit] = []
        for row in measure.rows(pairs):
            rows.append(row)
            progress.update(len(rows), len(pairs))
    rates = [_rates(run, side, judged.exact, questions) for side in ("before", "after")]
    overlap = _overlap_summary(found, questions)
    summary = _summary(rows, measure, scored, judged, overlap, rates, pairs_hash(run / "pairs.jsonl"))
    write_rows(run / ROWS, rows)
    write_atomic(run / SUMMARY, summary.model_dump_json(indent=1) + "\n")
    return summary


def kept_questions(run: RunDirectory) -> dict[str, list[Problem]]:
    """The questions that the run's evaluation has kept, by task; none before its first go."""
    return {path.stem: read_rows(path, Problem) for path in sorted((run / "eval").glob("problems/*.jsonl"))}


def export_labels(run: RunDirectory, config: RunConfig, output: Path) -> str:
    """Write a row for each pair whose steps can be labelled, in the lab with its labels; says how many in one line."""
    pairs, problems = _read(run)
    judge = exact_judge(config, problems)
    rows = labelled_rows(pairs, problems, judge)
    write_rows(output, rows)
    open_ = "labelled by the lab's rules" if judge else "to be labelled: set each right to true or false"
    return f"{output}: the steps of {len(rows)} of {len(pairs)} pairs, {open_}"


def _read(run: RunDirectory) -> tuple[list[Pair], dict[str, Problem]]:
    """The run's pairs, and its problems by id. Raises `UserError` where there are no pairs."""
    path = run / "pairs.jsonl"
    if not path.exists():
        raise UserError(f"{path}: not there yet; the stage 'filter' makes it")
    pairs = read_rows(path, Pair)
    if not pairs:
        raise UserError(f"{path}: no pairs to audit")
    asked = run / "problems.jsonl"
    return pairs, {row.id: row for row in read_rows(asked, Problem)} if asked.exists() else {}


def _refusal(found: Sequence[Overlap], questions: Questions, num_pairs: int) -> str:
    tasks = Counter(task for task, _ in {(row.task, row.problem_id) for row in found})
    told = ", ".join(f"{count} of {len(questions[task])} of {task}" for task, count in tasks.items())
    return (
        f"{len({row.pair_id for row in found})} of {num_pairs} pairs overlap with questions of the evaluation ({told}; "
        f"for example pair {found[0].pair_id!r} with {found[0].problem_id!r}), whose accuracy will say nothing about "
        "new questions; drop those problems and start again, or continue with --allow_overlap"
    )


def _overlap_summary(found: Sequence[Overlap], questions: Questions) -> OverlapSummary | None:
    """How many pairs and questions overlap; `None` where there were no questions to look at."""
    if not questions:
        return None
    return OverlapSummary(
        tasks={task: len(rows) for task, rows in questions.items()},
        pairs=len({row.pair_id for row in found}),
        questions=len({(row.task, row.problem_id) for row in found}),
    )


class _Measure:
    """All of a pair that needs no model, put together with what needed one."""

    def __init__(
        self,
        encode: Encoder,
        judged: Judged,
        likelihoods: Mapping[str, Likelihood],
        found: Sequence[Overlap] | None,
    ) -> None:
        self._encode, self._judged, self._likelihoods = encode, judged, likelihoods
        self._overlaps = None if found is None else _by_pair(found)
        self._first: dict[tuple[str, ...], str] = {}
        self._asked: set[str] = set()
        self.style = StyleAudit()
        self.same_question = 0

    def rows(self, pairs: Iterable[Pair]) -> Iterator[PairAudit]:
        """The pairs' rows, in order."""
        source = iter(pairs)
        while chunk := list(islice(source, TEXTS_AT_ONCE // 2)):
            ids = self._encode.batch([text_of(side) for pair in chunk for side in (pair.rejected, pair.chosen)])
            for pair, rejected, chosen in zip(chunk, ids[::2], ids[1::2], strict=True):
                yield self._row(pair, rejected, chosen)

    def _row(self, pair: Pair, rejected_ids: list[int], chosen_ids: list[int]) -> PairAudit:
        if not rejected_ids or not chosen_ids:
            raise UserError(f"pair {pair.id!r}: an answer is empty; run the stage 'filter' again")
        rejected, chosen = text_of(pair.rejected), text_of(pair.chosen)
        question = _flat(text_of(pair.prompt))
        self.same_question += question in self._asked
        self._asked.add(question)
        first = self._first.setdefault((question, _flat(rejected), _flat(chosen)), pair.id)
        return PairAudit(
            id=pair.id,
            problem_id=pair.problem_id,
            oracle=pair.oracle,
            edits=edits(rejected_ids, chosen_ids),
            likelihood=self._likelihoods.get(pair.id),
            steps=self._judged.steps.get(pair.id),
            unjudged=self._judged.unjudged.get(pair.id),
            style=self.style.add(rejected, chosen),
            duplicate_of=None if first == pair.id else first,
            overlaps=None if self._overlaps is None else self._overlaps.get(pair.id, []),
        )


def _by_pair(found: Sequence[Overlap]) -> dict[str, list[OverlapRow]]:
    rows: defaultdict[str, list[OverlapRow]] = defaultdict(list)
    for row in found:
        rows[row.pair_id].append(OverlapRow(task=row.task, problem_id=row.problem_id, share=row.share))
    return dict(rows)


def _flat(text: str) -> str:
    """What two texts have in common that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def _rates(run: RunDirectory, side: str, judge: Judge | None, questions: Questions) -> Rates | None:
    """How often each kind of error occurs in the evaluation's answers; `None` where there are none to judge."""
    paths = {task: run / "eval" / side / f"{task}.jsonl" for task in questions}
    if judge is None or not any(path.exists() for path in paths.values()):
        return None
    asked = {row.id: row for rows in questions.values() for row in rows}
    answers = [row for path in paths.values() if path.exists() for row in read_rows(path, Attempt)]
    return error_rates(judge, asked, answers)


def _scored(
    run: RunDirectory, config: RunConfig, pairs: Sequence[Pair], tokenizer: Any, skip: bool, progress: Bar
) -> Scored:
    """The pairs under the student and, where there is one, the trained model."""
    if skip:
        return Scored({}, None, {"likelihood": "left out with --skip_models"})
    import torch
    from transformers.utils import logging

    from spot.audit.likelihood import LikelihoodAudit
    from spot.chat_template import Chat
    from spot.train.tokenize import tokenize_pairs

    logging.disable_progress_bar()
    path, trained = model_path(config.student.model), run / "model"
    try:
        chat = Chat(tokenizer, run.day, stop_ids=stop_ids(path))
        tokens, _ = tokenize_pairs(pairs, tokenizer, config.train.max_length, chat)
        student = _model(path, config)
        after = _model(str(trained), config) if trained.is_dir() else None
        scorer = LikelihoodAudit(student, after)
        rows: dict[str, Likelihood] = {}
        for place, row in scorer.score(tokens):
            rows[tokens[place].id] = row
            progress.update(len(rows), len(tokens))
    except UserError as error:
        # All the rest can be measured without the weights, which may be on another machine.
        return Scored({}, None, {"likelihood": str(error)})
    except torch.OutOfMemoryError:
        raise RunFailed("the models do not fit into memory; leave the likelihoods out with --skip_models") from None
    if not rows:
        return Scored({}, None, {"likelihood": "all pairs are longer than train.max_length"})
    missing = {} if after is not None else {"kl": f"there is no trained model in {trained}"}
    return Scored(rows, scorer.summary(config.student.model, "trained" if after is not None else None), missing)


def _model(path: str, config: RunConfig) -> "PreTrainedModel":
    """The weights at `path` on the student's device, in its precision, in evaluation mode."""
    import torch

    name = config.student.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.student.dtype
    model: Any = load_model(path, dtype if dtype == "auto" else getattr(torch, dtype))
    return model.to(name).eval()


def _summary(
    rows: Sequence[PairAudit],
    measure: _Measure,
    scored: Scored,
    judged: Judged,
    overlap: OverlapSummary | None,
    rates: Sequence[Rates | None],
    identity: str,
) -> AuditSummary:
    steps = None if judged.not_measured else summarise_steps(rows, *rates)
    reasons = dict(scored.not_measured)
    if steps is None:
        reasons["steps"] = judged.not_measured
    if overlap is None:
        reasons["overlap"] = "the run's config names no evaluation task"
    return AuditSummary(
        pairs=len(rows),
        pairs_hash=identity,
        oracles=sorted({row.oracle for row in rows}),
        edits=summarise_edits([row.edits for row in rows]),
        likelihood=scored.summary,
        steps=steps,
        judge=judged.model,
        style=measure.style.summary(),
        duplicates=sum(row.duplicate_of is not None for row in rows),
        same_question=measure.same_question,
        overlap=overlap,
        not_measured=reasons,
    )
