r"""Commands of LaTeX that lost their backslash, and what only looks like one: `\n` and a word."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.config import load_config
from spot.errors import UserError
from spot.files.escapes import slip, spelled_out, unknown
from spot.files.store import Appender, read_rows, write_rows
from spot.rectify.imported import ImportedCorrection
from spot.schema import Attempt, Problem, Row, Sampling, Verdict
from spot.stages.asking import Answer

DATA = Path(__file__).parents[2] / "shared" / "data"

# What a person types between quotes. Every command of these ends as something else, and the JSON is valid.
TYPED = r"""3 \times 4|\frac{1}{2}|\boxed{5}|\beta|x \neq 3|x\neq3|x_1 \neq x_2|$x^{2} \neq 4$|x \ne 0|$a\ne b$|
E = h\nu|$\nu = 5$|the frequency \nu is 5|$h\nu$|\nabla f|x \notin A|a \nmid b|\neg p|$\neg q$|a \not= b|
\nleq 4 \times 2|\text{ cm}|\textbf{5}|\theta|\tan x|\tan(x)|\tan\theta|\tanh 2|\tau = 3|$\tau$|x \to 0|
x\to y|A^\top|\tfrac{1}{2}|\tfrac12|\triangle ABC|\therefore x = 2|\tilde{x}|\tbinom{5}{2}|\tag{1}|
\forall x|\footnotesize|\binom{5}{2}|\bar{x}|\begin{cases}|\bmod 7|\bullet|\bigcup|\boldsymbol{x}|\because|
\bf 5|\rho|\right)|\rightarrow|\rangle|\rfloor|\rceil|\root|\nearrow|\newline|\ncong|\nsubseteq|$5\nless 3$|
l \nparallel m""".replace("\n", "").split("|")

# What a program writes, and what a person means by it.
MEANT = r"""a\tb|\tindented|Step 1\nNext|x\nunder|\nu = 3|so\nu = 3\nand|$$\nu=\\frac{1}{2}$$|\\[\nu_{S}(t)|\ne^{x}|
\ne(A, B)|\n(d) 3\ne) 4|in\nparallel.|is\nless than|the one\nexists|where\nor|\nis|\ne.g. 5|not\neg 3|
name\tan apple|\to item|\n\to: 3|\tau revoir|int\tfrac_digits|a\text file|col\tag|x = 2\nu = 3|
x = f(z)\nu = (v)|\r\nright|\u0009imes|\\times \\frac \\neq|we have $u = x$\nu = 3|\\\\times|c = 1\ne1 = 2|
2\nnu|\\begin{array}{c}\ni \\\\ 2|on the left\nnot""".replace("\n", "").split("|")


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_with_one_backslash_is_refused_with_what_to_write(typed: str) -> None:
    told = slip(json.dumps({"response": "P"}).replace("P", typed))
    assert told is not None
    command = told.partition(" ")[0]
    assert command in typed and f"write \\{command}, with two backslashes" in told
    right = typed.replace("\\", "\\\\")  # as it is told
    assert slip(json.dumps({"response": "P"}).replace("P", right)) is None


@pytest.mark.parametrize("meant", MEANT)
def test_tabs_and_line_breaks_before_words_are_fine(meant: str) -> None:
    assert slip(json.dumps({"response": "P"}).replace("P", meant)) is None


def test_a_backslash_that_json_does_not_know_is_named() -> None:
    assert unknown(r'{"a": "\\sqrt \sqrt{2}"}') == r"\sqrt"
    assert unknown(r'{"a": "\underline{x}"}') == r"\underline"
    assert unknown(r'{"a": "\u03b1 \\\\ \n \" \/"}') is None


@given(st.lists(st.sampled_from([*TYPED, *MEANT, *"\t\f\b\r\n\\ $a5({", "imes", "rac", "eq 3", "u"])).map("".join))
def test_what_we_write_ourselves_is_the_same_text_and_never_in_doubt(text: str) -> None:
    for line in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        assert json.loads(spelled_out(line)) == text
        assert slip(spelled_out(line)) is None
    real = json.loads(f'"{TYPED[0]}"') + text  # a model may have written a real tab before these letters
    attempt = Attempt(id="a", problem_id="p", sample=0, response=real, finish_reason="stop", model="m",
                      verdict=Verdict(correct=None), sampling=Sampling())  # fmt: skip
    assert slip(spelled_out(attempt.model_dump_json())) is None


REAL_SLIPS = {"825: \\rho", "921: \\text"}
"""In the published `deepmath_rlvr` file: `$\\rho(x,y)$` has a carriage return, `$f \\text{ on }` a tab."""


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_no_real_row_is_refused_but_two_that_are_broken() -> None:
    slips: set[str] = set()
    for path in sorted(DATA.glob("*/*.jsonl")):
        for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
            if told := slip(line):
                assert path.parent.name == "deepmath_rlvr"
                slips.add(f"{number}: {told.partition(' ')[0]}")
    assert slips == REAL_SLIPS
    solutions: list[Any] = json.loads((DATA / "verify_then_generate" / "dataset.json").read_text("utf-8"))
    assert not any(slip(json.dumps(row)) for row in solutions)


HAND_FILES: dict[type[Row], str] = {
    Problem: r'{"id": "a", "prompt": "What is 3 \times 4?", "answer": "12"}',
    Answer: r'{"problem_id": "a", "response": "3 \times 4 = 11"}',
    ImportedCorrection: r'{"attempt_id": "a#0", "response": "3 \times 4 = \\boxed{12}"}',
}


@pytest.mark.parametrize("kind", HAND_FILES)
def test_each_file_that_a_person_may_write_is_looked_at(kind: type[Row], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + HAND_FILES[kind] + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2: \\times is read as a tab and 'imes'; write \\\\times"):
        read_rows(path, kind, by_hand=True)
    assert len(read_rows(path, kind)) == 1
    rows = read_rows(path, kind)
    write_rows(path, rows)
    assert read_rows(path, kind, by_hand=True) == rows  # written by us, it is what it is
    path.unlink()
    with Appender(path) as file:
        file.append(rows)
    assert read_rows(path, kind, by_hand=True) == rows
    path.write_text(HAND_FILES[kind].replace(r"\times", r"\cdot"))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: not a JSON object .*; write \\\\cdot, with two backslashes"):
        read_rows(path, kind)


@pytest.mark.parametrize("value", ['problems: {answer_pattern: "\\boxed"}', 'run: {name: "a \\times b"}'])
def test_a_config_is_looked_at_too(value: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(value)
    with pytest.raises(UserError, match=r"c\.yaml: \\(boxed|times) is read as"):
        load_config(path)


def test_the_commands_refuse_in_one_line(tmp_path: Path) -> None:
    spot = shutil.which("spot", path=str(Path(sys.executable).parent))
    assert spot is not None
    (tmp_path / "p.jsonl").write_text(HAND_FILES[Problem] + "\n")
    done = subprocess.run(
        [spot, "elicit", "--model", "lab", "--problems", "p.jsonl", "--output", "a.jsonl"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(r"error: p.jsonl:1: \times is read as a tab and 'imes'; write \\times")
