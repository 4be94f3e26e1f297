"""Whole files or the old ones, and an output that one process has at a time."""

import os
from pathlib import Path

import pytest

from spot.disk import locked, write_atomic
from spot.errors import UserError


def test_atomic_write_leaves_the_old_file_when_it_cannot_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*free some room and run the same command again"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_replaces_no_link_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "f")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "f").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", "new")
    assert os.read(reader, 9) == b"new" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_an_output_in_use_is_refused_and_nothing_is_left_of_the_lock(tmp_path: Path) -> None:
    for output in (tmp_path / "deep" / "rows.jsonl", tmp_path):
        with locked(output), pytest.raises(UserError, match=f"{output}: in use by another process"), locked(output):
            pass
        with locked(output):
            pass
    assert not list(tmp_path.parent.glob(".*.lock")) and not list((tmp_path / "deep").iterdir())
    with locked(Path("/dev/null")):
        assert not Path("/dev/.null.lock").exists()
