from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rectify.conftest import MakeFailure

from spot.errors import UserError
from spot.rectify.parse import Markers
from spot.rectify.prompting import WITH_ANSWER, WITHOUT_ANSWER, known_prompts, load_prompt
from spot.schema import Message

MARKERS = Markers("<result-x>", "</result-x>")


def test_both_prompts_are_packaged_and_only_one_shows_the_answer(make_failure: MakeFailure) -> None:
    assert known_prompts() == [WITH_ANSWER, WITHOUT_ANSWER]
    failure = make_failure()
    secret = failure.problem.model_copy(update={"answer": "74205"})
    failure = type(failure)(secret, failure.attempt)
    assert "74205" in load_prompt(None, with_answer=True).render(failure, MARKERS)
    assert "74205" not in load_prompt(None, with_answer=False).render(failure, MARKERS)


@pytest.mark.parametrize("with_answer", [True, False])
def test_prompt_holds_problem_answer_and_each_marker_once(with_answer: bool, make_failure: MakeFailure) -> None:
    failure = make_failure()
    text = load_prompt(None, with_answer).render(failure, MARKERS)
    assert isinstance(failure.problem.prompt, str)
    assert failure.problem.prompt in text
    assert failure.attempt.response in text
    assert text.count(MARKERS.start) == text.count(MARKERS.end) == 1


@pytest.mark.parametrize(
    "evil", ["{{ answer }}", "{% raw %}", "{# x #}", "{{", "\\boxed{{{1}}}", "{% for %}", "{{ 7*7 }}"]
)
def test_template_syntax_in_the_students_text_is_inert(evil: str, make_failure: MakeFailure) -> None:
    text = load_prompt(None, with_answer=True).render(make_failure(response=evil, prompt=evil), MARKERS)
    assert text.count(evil) >= 2
    assert "49" not in text


@given(st.text(alphabet=st.sampled_from("{}%#\\ab\n \u00e9")))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_text_arrives_unchanged(make_failure: MakeFailure, text: str) -> None:
    assert text in load_prompt(None, with_answer=False).render(make_failure(response=text), MARKERS)


def test_conversations_keep_their_roles(make_failure: MakeFailure) -> None:
    prompt = [Message(role="system", content="Be brief."), Message(role="user", content="2 + 2?")]
    text = load_prompt(None, with_answer=True).render(make_failure(prompt=prompt), MARKERS)
    assert "[system]\nBe brief.\n\n[user]\n2 + 2?" in text


def test_version_is_the_name_and_changes_with_the_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    versions: set[str] = set()
    for body in ("{{ start }} {{ end }}", "{{ start }}  {{ end }}"):
        file.write_text(body)
        versions.add(load_prompt(str(file), with_answer=True).version)
    assert len(versions) == 2
    assert all(version.startswith("mine@") for version in versions)
    assert load_prompt(None, with_answer=True).version.startswith("rewrite_with_answer.v1@")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{{ start }}{{ end", r"line 1"),
        ("{{ start }}{{ end }}{{ solution }}", r"'solution' is undefined; it may read: end, problem"),
        ("{{ start }}{{ end }}{{ answer }}", r"'answer' is undefined"),
        ("{{ start }}", r"never shows \{\{ end \}\}"),
        ("{{ start }}{{ end }}{{ 1 // 0 }}", r"ZeroDivisionError"),
        ("{{ start }}{{ end }}{% include 'x' %}", r"prompt mine"),
        ("{{ start }}{{ end }}{{ problem.__class__.__mro__ }}", r"unsafe"),
    ],
)
def test_broken_templates_are_one_line_before_anything_is_sent(tmp_path: Path, body: str, told: str) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(body)
    with pytest.raises(UserError, match=told) as caught:
        load_prompt(str(file), with_answer=False)
    assert "\n" not in str(caught.value)


def test_missing_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such prompt; there are rewrite_with"):
        load_prompt("nope", with_answer=True)
    with pytest.raises(UserError, match=r"absent\.jinja: cannot read"):
        load_prompt(str(tmp_path / "absent.jinja"), with_answer=True)
