"""Preference rows from files and from the hub: each row's name leads back to its place."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spot.errors import UserError
from spot.files.store import write_rows
from spot.schema import Message, Pair
from spot.train.rows import read_preferences

ROW = {"prompt": "a", "chosen": "b", "rejected": ""}


def test_a_row_without_an_id_is_called_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(ROW) + "\n\n\n" + json.dumps(ROW | {"id": "x"}) + "\n" + json.dumps(ROW))
    assert [row.id for row in read_preferences(path)] == ["2", "x", "6"]


def test_an_empty_prompt_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"prompt": " "}))
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: field 'prompt': is empty"):
        read_preferences(path)


def test_a_completion_is_a_chosen_answer_without_a_rejected_one(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}], "meta": {}}))
    [row] = read_preferences(path)
    assert (row.prompt, row.rejected) == ("a", None) and row.chosen == [Message(role="assistant", content="b")]
    path.write_text(json.dumps({"prompt": "a", "completion": "b", "chosen": "c"}))
    with pytest.raises(UserError, match=r"sft\.jsonl:1: the field 'rejected' is missing"):
        read_preferences(path)


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_lost_backslash_is_refused_in_any_column(column: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    typed = json.dumps(ROW | {column: "P"}).replace("P", r"so 3 \times 4")
    path.write_text(json.dumps(ROW) + "\n" + typed + "\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: \\times is read as a tab .*with two backslashes"):
        read_preferences(path)
    path.write_text(json.dumps(ROW | {column: "so 3 \\times 4,\n\tas said"}) + "\n")
    assert getattr(read_preferences(path)[0], column) == "so 3 \\times 4,\n\tas said"


def test_what_spot_wrote_is_read_whatever_a_model_answered(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    broken = Pair(id="a", problem_id="a", prompt="b", chosen="c", rejected="3 \times 4", change_ratio=0.1, oracle="o")
    write_rows(path, [broken])
    assert [row.rejected for row in read_preferences(path)] == ["3 \times 4"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[Any]]:
    """Puts rows, or an error, where `datasets` would get them; the list holds how it was asked."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)

    def serve(answer: Any) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(name: str, split: str) -> Any:
            asked.append((name, split))
            if isinstance(answer, Exception):
                raise answer
            return datasets.Dataset.from_list(answer)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


def test_a_name_on_the_hub_is_read_by_datasets(hub: Callable[[Any], list[Any]]) -> None:
    asked = hub([ROW, ROW | {"score": 3}])
    rows = read_preferences(Path("trl-lib/ultrafeedback_binarized"))
    assert asked == [("trl-lib/ultrafeedback_binarized", "train")]
    assert [(row.id, row.prompt, row.chosen) for row in rows] == [("1", "a", "b"), ("2", "a", "b")]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            ConnectionError("no\nnetwork"),
            r"^o/d: no such file, and not read from the hub \(ConnectionError: no network\)",
        ),
        ([{"chosen": "b", "rejected": "c"}], r"^o/d, row 1: the field 'prompt' is missing; call the"),
        ([], r"^o/d: no rows"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub: Callable[[Any], list[Any]], answer: Any, told: str) -> None:
    hub(answer)
    with pytest.raises(UserError, match=told) as caught:
        read_preferences(Path("o/d"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["data/pairs.jsonl", "folder/pairs", "pairs"])
def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(
    hub: Callable[[Any], list[Any]], tmp_path: Path, name: str
) -> None:
    asked = hub([ROW])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^{name}: no such file$"):
        read_preferences(Path(name))
    assert not asked


def test_without_datasets_the_mend_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"^o/d: no such file; to read it from the hub: pip install datasets, or save"):
        read_preferences(Path("o/d"))
