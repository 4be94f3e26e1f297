"""Steps labelled by the lab's exact judge: one line a step, as a judge model sees them, loses nothing."""

from pathlib import Path

from tests.audit.lab_run import WORLD, make_run

from spot.audit.labels import LAB_KINDS, lab_verdicts
from spot.audit.split import steps_of
from spot.files.store import read_rows
from spot.lab.step_judge import LabJudge
from spot.schema import Pair, Problem, text_of


def test_labels_by_the_lab_are_those_of_its_judge_whatever_the_style(tmp_path: Path) -> None:
    """One step a line loses nothing: the judge finds the same errors in the steps as in the answer."""
    run, judge = make_run(tmp_path / "run", 60), LabJudge(WORLD)
    problem_of = {problem.id: problem for problem in read_rows(run / "problems.jsonl", Problem)}
    labelled = 0
    for pair in read_rows(run / "pairs.jsonl", Pair):
        problem = problem_of[pair.problem_id]
        for side in (text_of(pair.rejected), text_of(pair.chosen)):
            wrong = [step.kinds[0].partition(" ")[0] for step in judge(problem, side) or () if step.kinds]
            labels = lab_verdicts(judge, problem, steps_of(side))
            if labels is None:
                assert {"missing", "extra"} & set(wrong)
                continue
            labelled += 1
            assert list(filter(None, labels)) == [LAB_KINDS[kind] for kind in wrong]
    assert labelled > 100


def test_an_answer_that_leaves_a_step_out_is_not_labelled() -> None:
    problem = Problem(id="p", prompt="?", answer="31", meta={
        "family": "in_domain", "start": 12, "item": WORLD.raw["items"][0], "events": [["double", 0], ["add", 7]],
    })  # fmt: skip
    judge = LabJudge(WORLD)
    assert lab_verdicts(judge, problem, ["12 * 2 = 24;", "24 + 8 = 31;", "\\boxed{32}"]) == [
        "", "wrong-formula", "carried-over",
    ]  # fmt: skip
    assert lab_verdicts(judge, problem, ["12 * 2 = 24;", "\\boxed{24}"]) is None
    assert lab_verdicts(judge, problem, ["12 * 2 = 24;", "24 + 7 = 31;", "31 + 1 = 32;", "\\boxed{32}"]) is None
    assert lab_verdicts(judge, problem, ["12 * 2 = 24;", "24 + 7 = 31;", "that is it"]) is None
