import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spot.evaluate.comparison import Accuracy, Change, Comparison, TaskResult
from spot.report.figures import (
    RATIO_BINS,
    Drawing,
    binned,
    draw_change_ratio,
    draw_counts,
    draw_evaluation,
    draw_training,
    series,
)
from spot.report.sheet import round_ticks
from spot.report.summary import ChangeRatios, Counts
from spot.report.svg import PALETTE, SENTINEL

SVG = "{http://www.w3.org/2000/svg}"


def counts(**changes: int | dict[str, int]) -> Counts:
    values = {
        "problems": 10, "attempts": 10, "correct": 4, "wrong": 5, "unscored": 0, "truncated": 1, "rectified": 4,
        "pairs": 3, "dropped": {"not_verified": 1, "change_ratio": 1},
    } | changes  # fmt: skip
    return Counts.model_validate(values)


def task(before: float, after: float, n: int = 100) -> TaskResult:
    comparison = Comparison(
        before=Accuracy(mean=before, stderr=0.03, n=n),
        after=Accuracy(mean=after, stderr=0.03, n=n),
        difference=Change(mean=after - before, low=-0.5, high=0.5, n=n),
    )
    return TaskResult(
        before=comparison.before,
        after=comparison.after,
        difference=comparison.difference,
        slices={"unseen": comparison},
    )


def metrics(number: int) -> list[dict[str, float]]:
    return [
        {"step": step, "loss": 1 / step, "rewards/chosen": step, "rewards/rejected": -step, "rewards/delta": 0}
        for step in range(1, number + 1)
    ]


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return [
        draw_evaluation({"in_domain": task(0.2, 0.5)}),
        draw_counts(counts()),
        draw_change_ratio(ChangeRatios(gamma=0.6, values=[0.1, 0.6, 0.7])),
        draw_training(metrics(5)),
    ]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_same_input_gives_the_same_bytes(drawings: list[Drawing]) -> None:
    assert draw_change_ratio(ChangeRatios(gamma=0.6, values=[0.1, 0.6, 0.7])) == drawings[2]
    assert draw_training(metrics(5)) == drawings[3]


def test_files_stand_alone_in_their_light_colours(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.file)
        assert root.tag == f"{SVG}svg"
        assert "var(" not in drawing.file
        assert PALETTE["muted"][0] in drawing.file
        # Dates would make two runs differ; links would make the file depend on others.
        assert not re.search(r"20\d\d-|<metadata|<!DOCTYPE|@import|<script", drawing.file)
        assert not re.search(r'(?:href|src)="(?!#)', drawing.file)


def test_no_sentinel_colour_is_left(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        for svg in (drawing.file, *drawing.inline):
            assert not [role for role, sentinel in SENTINEL.items() if sentinel in svg]


def test_inline_figures_use_only_the_pages_colours(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        for svg in drawing.inline:
            assert not re.search(r"#[0-9a-f]{6}", svg)
            assert set(re.findall(r"var\(--fig-([a-z]+)\)", svg)) <= PALETTE.keys()


def test_ids_do_not_clash_and_references_resolve(drawings: list[Drawing]) -> None:
    page = "".join(svg for drawing in drawings for svg in drawing.inline)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }


def test_figures_are_named_and_described(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.inline[1])
        labels = root.attrib["aria-labelledby"].split()
        named = {element.attrib.get("id"): element.text for element in root}
        assert root.attrib["role"] == "img"
        assert [named[label] for label in labels] == [drawing.title, drawing.description]
        assert drawing.description


def test_inline_figures_bring_no_rules_for_the_page(drawings: list[Drawing]) -> None:
    assert not any("<style" in svg for drawing in drawings for svg in drawing.inline)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(theme: int) -> None:
    paper = luminance(PALETTE["paper"][theme])
    for role, colours in PALETTE.items():
        brightness = luminance(colours[theme])
        contrast = (max(paper, brightness) + 0.05) / (min(paper, brightness) + 0.05)
        if role in ("ink", "muted", "rejected"):  # used for text: WCAG AA
            assert contrast >= 4.5, role
        elif role not in ("paper", "line"):
            assert contrast >= 2, role


def test_figure_and_page_share_their_paper() -> None:
    css = (Path(__file__).parents[2] / "src/spot/report/report.css").read_text()
    assert re.findall(r"--paper: (#\w+)", css) == list(PALETTE["paper"])
    assert re.findall(r"--ink: (#\w+)", css) == list(PALETTE["ink"])


@settings(max_examples=4, deadline=None)
@given(st.text(max_size=60))
@example("\x00\x1b[31m\n\u2028\ufffe")
@example("数学 שלום \u202e " * 9)
def test_any_name_can_be_drawn(name: str) -> None:
    ElementTree.fromstring(draw_counts(counts(dropped={name: 3})).wide)


def test_names_are_not_read_as_mathematics() -> None:
    assert "$a_1$ <b>" in texts(draw_evaluation({"$a_1$ <b>": task(0.1, 0.2)}).wide)


def test_values_and_slices_are_written_beside_their_bars(drawings: list[Drawing]) -> None:
    written = texts(drawings[0].wide)
    assert written.count("20.0%") == 2
    assert written.count("50.0%") == 2
    assert {"In-domain", "unseen"} <= set(written)


def test_counts_show_reasons_by_frequency_and_leave_out_what_never_happened() -> None:
    reasons = {"late": 1, "not_verified": 7, "never": 0}
    written = texts(draw_counts(counts(dropped=reasons)).wide)
    assert written[written.index("Dropped") :] == ["Dropped", "not verified", "7", "late", "1"]
    assert "Dropped" not in texts(draw_counts(counts(dropped={})).wide)


@given(st.floats(0, 1), st.lists(st.floats(0, 1)))
def test_every_correction_is_in_one_bin_on_the_right_side_of_gamma(gamma: float, values: list[float]) -> None:
    kept, over = binned(ChangeRatios(gamma=gamma, values=values))
    assert sum(kept) == sum(value <= gamma for value in values)
    assert sum(over) == sum(value > gamma for value in values)


@pytest.mark.parametrize("place", range(RATIO_BINS + 1))
def test_a_ratio_on_an_edge_falls_below_it(place: int) -> None:
    kept, _ = binned(ChangeRatios(gamma=1, values=[place / RATIO_BINS]))
    assert kept.index(1) == max(0, place - 1)


def test_training_shows_what_the_objective_logs() -> None:
    loss_alone = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0}]
    assert "Implicit rewards" not in texts(draw_training(loss_alone).wide)
    assert {"chosen", "rejected", "shift"} <= set(texts(draw_training(metrics(3)).wide))


@pytest.mark.parametrize("number", [0, 1, 2000])
def test_any_number_of_steps_can_be_drawn(number: int) -> None:
    assert draw_training(metrics(number)).wide


def test_values_that_are_not_numbers_leave_a_gap() -> None:
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": float("nan")}, {"step": 3.0, "loss": float("inf")}]
    assert series(rows, "loss") == [(1, 2)]
    assert draw_training(rows).wide


@given(st.integers(1, 10**9))
def test_ticks_are_few_and_within_the_axis(limit: int) -> None:
    ticks = list(round_ticks(limit))
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= 6
    assert ticks[-1] <= limit
