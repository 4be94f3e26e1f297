import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from spot.errors import UserError
from spot.files.store import write_rows
from spot.report.build import build_report
from spot.schema import Pair

NewRun = Callable[..., Path]
VOID = {"meta", "br", "hr", "img", "link"}
HOSTILE = "</p></article><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;\"'"


class Page(HTMLParser):
    """Collects a page's tags, attributes and text; asserts that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data


def page_of(run: Path, reproduce: str = "spot demo") -> Page:
    return Page(build_report(run, reproduce).read_text("utf-8"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_that_stopped_is_called_unfinished(new_run: NewRun) -> None:
    run = new_run()
    assert "Unfinished" not in page_of(run).text
    rewrite(run / "summary.json", unfinished="stopped in train")
    assert "Unfinished: stopped in train." in page_of(run).text


def test_the_page_holds_every_part_in_order(new_run: NewRun) -> None:
    run = new_run(questions=120)
    page = page_of(run, "spot run demo.yaml run.seed=7")
    headings = [
        "Before and after", "From questions to pairs", "How much the corrections change", "Training",
        "Rectifications", "Answers that changed", "Time and memory", "Notes", "To reproduce",
    ]  # fmt: skip
    html = (run / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", html) == headings
    for fact in (
        "Accuracy rose on in-domain questions",
        "unseen templates",
        "5 of 1,280 pairs",
        "known answer",
        "spot run demo.yaml run.seed=7",
        "Seed: run.seed = 0.",
        "torch 2.13.0",
        "it is no benchmark",
        "1 min 11 s",
        "Peak memory 1.1 GiB",
    ):
        assert fact in page.text, fact
    changed = sum(min(result["difference"]["worse"], 20) + min(result["difference"]["better"], 10) for result in
                  json.loads((run / "summary.json").read_text())["evaluation"].values())  # fmt: skip
    assert page.tags.count("article") == 5 + changed
    assert page.tags.count("svg") == 4 * 2


def test_changed_words_are_highlighted_on_both_sides(new_run: NewRun) -> None:
    html = build_report(new_run(questions=3), "x").read_text()
    assert re.search(r'Doubling (\d+) means <mark class="wrong">\1 \+ 2</mark>', html)
    assert re.search(r'Doubling (\d+) means <mark class="right">2 \* \1</mark>', html)


def test_nothing_comes_from_outside_and_nothing_runs(new_run: NewRun) -> None:
    run = new_run(questions=5)
    page = page_of(run)
    policy = next(
        value for tag, _, value in page.attributes if tag == "meta" and (value or "").startswith("default-src")
    )
    assert policy and "default-src 'none'" in policy
    assert "script-src" not in policy
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert all((value or "").startswith("#") for _, key, value in page.attributes if key in ("href", "src"))
    assert not re.search(r"url\((?!#)|@import", (run / "report.html").read_text())


def test_both_themes_and_print_are_styled(new_run: NewRun) -> None:
    html = build_report(new_run(questions=3), "x").read_text()
    assert html.count("--fig-ink:") == 2
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_hostile_data_stays_text(new_run: NewRun) -> None:
    run = new_run(questions=3)
    rewrite(
        run / "summary.json",
        **dict.fromkeys(("name", "student", "oracle", "objective"), HOSTILE),
        notes=[HOSTILE],
        versions={HOSTILE: HOSTILE},
        settings={HOSTILE: {HOSTILE: [HOSTILE]}, "run": {"seed": HOSTILE}},
        seconds={HOSTILE: 1.0},
    )
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluation"][HOSTILE] = summary["evaluation"].pop("ood") | {
        "slices": {HOSTILE: summary["evaluation"]["in_domain"]["slices"]["unseen templates"]}
    }
    summary["counts"]["dropped"] = {HOSTILE: 3}
    summary["training"]["last"][HOSTILE] = 1.0
    (run / "summary.json").write_text(json.dumps(summary))
    pair = Pair(
        id="a", problem_id=HOSTILE, prompt=HOSTILE, chosen=HOSTILE + "2", rejected=HOSTILE + "1", change_ratio=0.1,
        oracle=HOSTILE, meta={"answer": HOSTILE},
    )  # fmt: skip
    write_rows(run / "pairs.jsonl", [pair])
    page = page_of(run, HOSTILE)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(HOSTILE) >= 10
    for figure in (run / "figures").iterdir():
        assert "script" not in {element.tag.split("}")[1] for element in ElementTree.parse(figure).iter()}


def test_the_same_run_gives_the_same_bytes_again(new_run: NewRun) -> None:
    run = new_run(questions=20)
    first = build_report(run, "x").read_bytes()
    figures = {file.name: file.read_bytes() for file in (run / "figures").iterdir()}
    assert build_report(run, "x").read_bytes() == first
    assert {file.name: file.read_bytes() for file in (run / "figures").iterdir()} == figures
    assert figures.keys() == {"evaluation.svg", "counts.svg", "change-ratio.svg", "training.svg"}


def test_ids_on_the_page_are_unique(new_run: NewRun) -> None:
    page = page_of(new_run(questions=5))
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_a_run_without_evaluation_says_so(new_run: NewRun) -> None:
    run = new_run(questions=3, evaluation={}, notes=[], seconds={}, peak_memory_bytes=0, versions={}, settings={})
    shutil.rmtree(run / "eval")
    page = page_of(run)
    assert "Nothing was evaluated in this run." in page.text
    assert "does not show whether the student became better or worse" in page.text
    assert "Peak memory was not recorded" in page.text
    assert not (run / "figures" / "evaluation.svg").exists()


def test_a_run_that_stopped_between_the_sides_names_what_is_not_compared(new_run: NewRun) -> None:
    run = new_run(questions=3, evaluation={}, averages={}, not_paired=["in_domain", "ood"])
    shutil.rmtree(run / "eval/after")
    page = page_of(run)
    assert "Nothing was compared in this run." in page.text
    assert "Not answered whole on both sides, so not compared: In-domain and Out-of-domain." in page.text
    assert "There is no question to show" not in page.text


def test_one_pair_and_nothing_dropped(new_run: NewRun) -> None:
    counts = {
        "problems": 1, "attempts": 1, "correct": 0, "wrong": 1, "unscored": 0, "truncated": 0, "rectified": 1,
        "pairs": 1,
    }  # fmt: skip
    run = new_run(questions=1, num_pairs=1, counts=counts, change_ratio={"gamma": 0.0, "values": [0.0]})
    page = page_of(run)
    assert "Nothing was dropped." in page.text
    assert "The wrong answer and its correction." in page.text
    assert page.text.count("Rejected: the student’s answer") == 1
    assert "Fewer than 30 questions" in page.text


def test_no_pairs_no_corrections_no_training(new_run: NewRun) -> None:
    counts = dict.fromkeys(
        ("problems", "attempts", "correct", "wrong", "unscored", "truncated", "rectified", "pairs"), 0
    )
    run = new_run(questions=2, counts=counts, change_ratio={"gamma": 0.6}, training={"steps": 0})
    for name in ("metrics.jsonl", "pairs.jsonl", "attempts.jsonl", "rectifications.jsonl"):
        (run / name).unlink()
    page = page_of(run)
    assert "There is no pair to show." in page.text
    assert "No correction verified" in page.text
    assert "No training step was logged." in page.text


def test_very_long_and_right_to_left_texts(new_run: NewRun) -> None:
    run = new_run(questions=2)
    long = "מילה " * 100_000
    write_rows(
        run / "pairs.jsonl",
        [
            Pair(
                id="a", problem_id="a", prompt=long, chosen=long + "שתיים", rejected=long + "שלוש", change_ratio=0.1,
                oracle="o",
            )
        ],
    )  # fmt: skip
    page = page_of(run)
    assert "characters left out" in page.text
    assert "שתיים" in page.text
    assert len(page.text) < 60_000
    assert ("p", "dir", "auto") in page.attributes


def test_a_loss_that_broke_is_reported(new_run: NewRun) -> None:
    run = new_run(questions=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 81, "loss": NaN}\n')
    assert "The loss was not a finite number at 1 logged step." in page_of(run).text


def test_a_chosen_reward_below_zero_is_explained(new_run: NewRun) -> None:
    training = {"steps": 80, "first": {"rewards/chosen": 0.0}, "last": {"rewards/chosen": -0.5, "loss": None}}
    text = page_of(new_run(questions=2, training=training)).text
    assert "the chosen reward went from 0 to −0.5" in text
    assert "became less likely than before training" in text


@pytest.mark.parametrize("name", ["summary.json", "pairs.jsonl", "metrics.jsonl"])
def test_a_missing_file_is_named_and_nothing_is_written(new_run: NewRun, name: str) -> None:
    run = new_run(questions=2)
    (run / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        build_report(run, "x")
    assert not (run / "report.html").exists()
    assert not (run / "figures").exists()


@pytest.mark.parametrize("name", ["pairs.jsonl", "attempts.jsonl", "rectifications.jsonl", "eval/after/ood.jsonl"])
def test_a_damaged_row_is_named_by_file_and_line(new_run: NewRun, name: str) -> None:
    run = new_run(questions=2)
    with (run / name).open("a") as file:
        file.write('{"id": "torn\n')
    lines = len((run / name).read_text().splitlines())
    with pytest.raises(UserError, match=f"{name}:{lines}: "):
        build_report(run, "x")
    assert not (run / "report.html").exists()
