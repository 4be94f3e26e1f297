"""`spot audit` over a whole run directory, and what the report and the terminal show of it."""

import shutil
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.audit.lab_run import COUNT, STUDENT, WORLD, attempt, make_run

from spot import cli
from spot.audit.run import audit, kept_questions
from spot.audit.summary import AuditSummary, PairAudit, read_audit
from spot.config import RunConfig
from spot.errors import UserError
from spot.files.store import RunDirectory, read_rows, write_rows
from spot.lab.stories import story_of
from spot.report.audit import audit_view, facts, print_audit, write_figures
from spot.schema import Attempt, Pair, Problem, text_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def audited(run: Path, **options: Any) -> AuditSummary:
    with RunDirectory(run) as directory:
        return audit(directory, RunConfig(), kept_questions(directory), Console(file=StringIO()), **options)


def change(run: Path, name: str, make: Callable[[list[Any]], list[Any]], kind: Any) -> None:
    write_rows(run / name, make(read_rows(run / name, kind)))


def told(summary: AuditSummary, width: int = 100, **options: Any) -> str:
    console = Console(file=StringIO(), width=width, **options)
    print_audit(summary, console)
    output: Any = console.file
    return output.getvalue()


def test_every_pair_has_a_row_that_agrees_with_the_filter(run: Path) -> None:
    shutil.copytree(STUDENT, run / "model")
    summary = audited(run)
    rows, pairs = read_rows(run / "audit.jsonl", PairAudit), read_rows(run / "pairs.jsonl", Pair)
    assert [row.id for row in rows] == [pair.id for pair in pairs]
    assert [row.edits.change_ratio for row in rows] == pytest.approx([pair.change_ratio for pair in pairs])
    assert all(row.likelihood and row.steps and row.overlaps == [] for row in rows)
    assert read_audit(run) == summary
    assert summary.not_measured == {}
    assert summary.likelihood is not None and summary.likelihood.kl is not None
    assert summary.likelihood.pairs == summary.pairs == COUNT
    assert summary.likelihood.kl.mean == pytest.approx(0, abs=1e-9)  # "trained" are the student's own weights
    assert summary.steps is not None
    assert summary.steps.new == 0 and summary.steps.fixed >= COUNT


def test_what_the_oracle_broke_everywhere_stands_out_and_what_the_student_learnt_of_it(run: Path) -> None:
    def broken(pair: Pair, number: int) -> Pair:
        text = text_of(pair.chosen)
        last = text.rindex("boxed{") + len("boxed{")
        return pair.model_copy(update={"chosen": text[:last] + "9" + text[last:]}) if number % 2 else pair

    change(run, "pairs.jsonl", lambda rows: [broken(row, number) for number, row in enumerate(rows)], Pair)
    questions = read_rows(run / "eval/problems/in_domain.jsonl", Problem)
    for side, last in (("before", "\\boxed{{{}}}"), ("after", "\\boxed{{9{}}}")):
        answers: list[Attempt] = []
        for question in questions:
            segments = WORLD.write(story_of(question), WORLD.work(story_of(question)), WORLD.styles["terse"], 0)
            answers.append(attempt(question, "".join(segments[:-1]) + last.format(question.answer)))
        (run / "eval" / side).mkdir()
        write_rows(run / "eval" / side / "in_domain.jsonl", answers)
    summary = audited(run, skip_models=True)
    assert summary.steps is not None
    (error,) = summary.steps.kinds
    assert (error.kind, error.count, error.pairs) == ("answer", COUNT // 2, COUNT // 2)
    assert error.before == 0 and error.after and error.after > 0.1
    text = told(summary)
    assert f"answer {COUNT // 2}" in text and "before to after training: answer 0.0% to" in text


def test_without_weights_the_rest_is_measured_and_the_reason_is_told(run: Path) -> None:
    summary = audited(run, skip_models=True)
    assert summary.likelihood is None
    assert summary.not_measured == {"likelihood": "left out with --skip_models"}
    assert "not measured  left out with --skip_models" in told(summary)
    trained = audited(run)
    assert trained.likelihood and trained.likelihood.kl is None
    assert trained.not_measured["kl"].startswith("there is no trained model in")


def test_pairs_that_are_no_stories_have_unmeasured_steps(run: Path) -> None:
    change(run, "problems.jsonl", lambda rows: [row.model_copy(update={"meta": {}}) for row in rows], Problem)
    summary = audited(run, skip_models=True)
    assert summary.steps is None
    assert "judge model" in summary.not_measured["steps"]
    assert [fact.value for fact in facts(summary) if fact.label == "errors newly introduced"] == ["not measured"]
    assert all(row.steps is None for row in read_rows(run / "audit.jsonl", PairAudit))


def test_pairs_that_are_evaluated_on_are_refused_unless_allowed(run: Path) -> None:
    asked = read_rows(run / "eval/problems/in_domain.jsonl", Problem)[3]
    change(run, "pairs.jsonl", lambda rows: [rows[0].model_copy(update={"prompt": asked.prompt}), *rows[1:]], Pair)
    with pytest.raises(UserError, match=r"1 of 24 pairs overlap .*1 of 30 of in_domain.*--allow_overlap"):
        audited(run, skip_models=True)
    assert not (run / "audit.json").exists() and not (run / "audit.jsonl").exists()
    summary = audited(run, skip_models=True, allow_overlap=True)
    assert summary.overlap and (summary.overlap.pairs, summary.overlap.questions) == (1, 1)
    (found,) = read_rows(run / "audit.jsonl", PairAudit)[0].overlaps or []
    assert (found.task, found.problem_id, found.share) == ("in_domain", asked.id, 1)


def test_duplicates_are_found_whatever_their_case(run: Path) -> None:
    def twice(rows: list[Pair]) -> list[Pair]:
        again = rows[0].model_copy(update={"id": "again", "chosen": text_of(rows[0].chosen).upper() + "\n"})
        other = rows[1].model_copy(update={"id": "other", "chosen": text_of(rows[1].chosen) + " Done."})
        return [*rows, again, other]

    change(run, "pairs.jsonl", twice, Pair)
    summary = audited(run, skip_models=True)
    assert (summary.duplicates, summary.same_question) == (1, 2)
    rows = {row.id: row for row in read_rows(run / "audit.jsonl", PairAudit)}
    assert rows["again"].duplicate_of == next(iter(rows)) and rows["other"].duplicate_of is None


def test_a_run_without_evaluation_says_so(run: Path) -> None:
    shutil.rmtree(run / "eval")
    summary = audited(run, skip_models=True)
    assert summary.overlap is None
    assert "names no evaluation task" in told(summary)
    assert all(row.overlaps is None for row in read_rows(run / "audit.jsonl", PairAudit))


def test_missing_and_empty_pairs_are_one_line(run: Path) -> None:
    (run / "pairs.jsonl").write_text("")
    with pytest.raises(UserError, match="no pairs to audit"):
        audited(run)
    (run / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match="the stage 'filter' makes it"):
        audited(run)


def test_a_damaged_audit_is_named(run: Path) -> None:
    (run / "audit.json").write_text('{"pairs": 3}')
    with pytest.raises(UserError, match=r"audit.json: damaged.*run spot audit again"):
        audit_view(run)


def test_an_audit_of_other_pairs_is_not_shown(run: Path) -> None:
    audited(run, skip_models=True)
    change(run, "pairs.jsonl", lambda rows: rows[1:], Pair)
    view = audit_view(run)
    assert isinstance(view, str) and "run spot audit again" in view
    (run / "audit.json").unlink()
    assert audit_view(run) is None


def test_the_table_fits_a_narrow_console_that_knows_only_ascii(run: Path) -> None:
    shutil.copytree(STUDENT, run / "model")
    summary = audited(run)
    text = told(summary, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) < 28

    class Plain(StringIO):
        encoding = "ascii"

    console = Console(file=Plain(), width=80, legacy_windows=False)
    print_audit(summary, console)
    output: Any = console.file
    assert output.getvalue().isascii()
    assert "y-" in output.getvalue() and "KL(trained || student)" in output.getvalue()


def test_figures_and_bytes_are_the_same_again(run: Path) -> None:
    paths = write_figures(run, audited(run))
    assert [path.name for path in paths] == ["audit-change.svg", "audit-divergence.svg"]
    first = [path.read_bytes() for path in (*paths, run / "audit.json", run / "audit.jsonl")]
    write_figures(run, audited(run))
    assert [path.read_bytes() for path in (*paths, run / "audit.json", run / "audit.jsonl")] == first


def spot(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["spot", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_command_and_the_report(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert spot(monkeypatch, "audit", str(run), "--skip_models") == 0
    output = capfd.readouterr().out
    assert "Audit of 24 pairs, corrected by o" in output and "audit-change.svg" in output
    assert spot(monkeypatch, "audit", str(run / "eval")) == 2
    assert capfd.readouterr().err.startswith("error: ")
    shutil.rmtree(run / "eval")  # the config's tasks are looked at before there is any evaluation
    asked = WORLD.problems("in_domain", "test", 400, 1)[399]
    change(run, "pairs.jsonl", lambda rows: [rows[0].model_copy(update={"prompt": asked.prompt}), *rows[1:]], Pair)
    assert spot(monkeypatch, "audit", str(run), "--skip_models") == 2
    assert "--allow_overlap" in capfd.readouterr().err
    assert spot(monkeypatch, "audit", str(run), "--skip_models", "--allow_overlap") == 0
    assert "1  of 400 questions" in capfd.readouterr().out
    assert spot(monkeypatch, "report", str(run)) == 0
    page = (run / "report.html").read_text()
    assert "<h2>Audit of the pairs</h2>" in page and "audit-change" in page and "audit-divergence" not in page
    assert "left out with --skip_models" in page
