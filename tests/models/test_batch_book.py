"""What the ledger's file remembers of batches, and that it stays one account."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spot.models.base import Reply, Usage
from spot.models.paid import lease
from spot.models.paid.batch_book import BatchBook
from spot.models.paid.ledger import Admit, Entry, Ledger, Replied


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def book(ledger: Ledger) -> BatchBook:
    return BatchBook(ledger, "http://h/v1")


def admit(ledger: Ledger, *keys: str) -> None:
    ledger.apply([Admit(Entry(key, "s", "e", "m", f"id-{key}", 0, 0, "{}", 1.0), None) for key in keys])


def answer(ledger: Ledger, *keys: str) -> None:
    ledger.apply([Replied(key, Reply(f"id-{key}", "hello", "stop", usage=Usage(1, 1)), 0.5) for key in keys])


def states(book: BatchBook, *keys: str) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(noted.token, noted.state, noted.keys) for noted in book.on_their_way(keys)]


def test_a_batch_from_plan_to_end(ledger: Ledger, book: BatchBook) -> None:
    book.plan("p", ["a", "b", "c"])
    admit(ledger, "a", "b")
    book.begin("p", "t", ["a", "b"])
    book.uploaded("t", "file-1")
    assert states(book, "a", "b", "c") == [("p", "planned", ("c",)), ("t", "submitting", ("a", "b"))]
    book.submitted("t", "batch_1")
    [noted] = book.on_their_way(["b"])
    assert (noted.batch_id, noted.file_id, noted.requests, noted.keys) == ("batch_1", "file-1", 2, ("b",))
    answer(ledger, "a")
    assert states(book, "a", "b") == [("t", "submitted", ("b",))]  # killed before `over`: the account knows
    book.settled("t", uncharged=["b"], over=[], again=["b"], plan="p", count=True)
    assert states(book, "b") == [("p", "planned", ("b",))]
    assert book.losses(["a", "b"]) == {"b": 1}
    book.over(["b"])
    assert (book.losses(["a", "b"]), states(book, "a", "b")) == ({}, [])
    assert ledger.spent() == (0.5, 0.0)


def test_what_came_to_nothing_costs_nothing_but_older_tries_stay(ledger: Ledger, book: BatchBook) -> None:
    admit(ledger, "a")  # of unknown outcome, before there was any batch
    book.plan("p", ["a", "b", "c"])
    admit(ledger, "b", "c")
    book.void("p", keep=["c"])
    assert ledger.spent() == (0.0, 2.0)
    assert states(book, "a", "b", "c") == [("p", "planned", ("c",))]
    book.void("p")
    assert ledger.spent() == (0.0, 1.0)
    assert states(book, "a", "b", "c") == []
    book.void("p")
    assert ledger.spent() == (0.0, 1.0)


def test_what_was_submitted_is_in_no_process_s_hands(ledger: Ledger, book: BatchBook) -> None:
    book.plan("p", ["a", "b"])
    admit(ledger, "a", "b")
    with ledger.transaction() as database:
        database.execute("UPDATE requests SET owner = 'elsewhere:1:1'")
    assert set(ledger.in_flight_elsewhere(["a", "b"])) == {"a", "b"}
    book.begin("p", "t", ["a"])
    book.submitted("t", "batch_1")
    assert set(ledger.in_flight_elsewhere(["a", "b"])) == {"b"}


def test_one_process_sees_to_a_batch(ledger: Ledger, book: BatchBook, monkeypatch: pytest.MonkeyPatch) -> None:
    book.plan("p", ["a"])
    with ledger.transaction() as database:
        database.execute("UPDATE batches SET owner = 'elsewhere:1:1'")
    assert book.claim("p") == "elsewhere:1:1" and not book.lives("elsewhere:1:1")
    monkeypatch.setattr(lease, "LEASE", 0.0)
    assert book.claim("p") is None
    book.release()
    assert book.claim("p") is None


def test_many_keys(ledger: Ledger, book: BatchBook) -> None:
    keys = [f"k{n}" for n in range(1201)]
    book.plan("p", keys)
    admit(ledger, *keys)
    assert [len(noted.keys) for noted in book.on_their_way(keys)] == [1201]
    book.void("p")
    assert ledger.spent() == (0.0, 0.0)


def test_threads_take_turns_and_a_failure_leaves_nothing(ledger: Ledger) -> None:
    threads = [threading.Thread(target=admit, args=(ledger, *(f"{n}-{m}" for m in range(50)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent() == (0.0, 400.0)
    with pytest.raises(ZeroDivisionError), ledger.transaction() as database:
        database.execute("UPDATE account SET open = 0")
        _ = 1 // 0
    assert ledger.spent() == (0.0, 400.0)
