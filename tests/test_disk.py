"""Whole files or the old ones, and an output that one process has at a time."""

import os
from pathlib import Path

import pytest

from spot.errors import UserError
from spot.files.disk import locked, replacing, write_atomic
from spot.files.store import RunDirectory


def test_atomic_write_leaves_the_old_file_when_it_cannot_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*free some space and run the same command again"):
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


def test_neither_a_temporary_file_nor_a_lock_follows_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody else")
    for name in ("f.tmp", ".f.lock", "run/.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(other)
    write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new" and not (tmp_path / "f").is_symlink()
    refused = pytest.raises(UserError, match=r"\.f\.lock: a symbolic link where a lock belongs; delete it")
    with refused, locked(tmp_path / "f"):
        pass
    with pytest.raises(UserError, match=r"run/\.lock: a symbolic link where a lock belongs; delete it"):
        RunDirectory.open(tmp_path / "run", "a: 1\n")
    with replacing(tmp_path / "g") as temporary:
        temporary.symlink_to(other)  # somebody is quicker than the write
        with pytest.raises(FileExistsError), temporary.open("xb"):
            pass
    assert other.read_text() == "of somebody else"


def test_a_dangling_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    for name in ("f.tmp", ".f.lock"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "f", "new")
    with pytest.raises(UserError, match="symbolic link"), locked(tmp_path / "f"):
        pass
    assert not (tmp_path / "elsewhere").exists()
