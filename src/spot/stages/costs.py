"""What rectification will cost, and what it has cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spot.config import RunConfig
from spot.errors import UserError
from spot.files.disk import write_atomic
from spot.files.store import read_rows
from spot.schema import Attempt
from spot.stages.opening import open_oracle, oracle_sampling

if TYPE_CHECKING:
    from rich.console import Console

    from spot.stages.place import Place

CHARACTERS_A_TOKEN = 4.0
AGAIN = {"rewrite": 3, "patch": 5, "continue": 5}
"""The most that asking again comes to, in times of the first reply's tokens: cut off (twice the tokens), and for edits
and steps told back once more."""
OUTPUT_SHARE = {"rewrite": 1.1, "patch": 0.35, "continue": 0.15}
"""Tokens that an Oracle writes, as a share of the answer's, roughly; reasoning comes on top (benchmarks/modes.py)."""


def estimate(config: RunConfig, place: "Place") -> str:
    """What asking about all wrong attempts would cost, likely and at the worst, in one line.

    What the ledger has a reply to costs nothing any more. Nothing is written.
    """
    from spot.models.paid.ledger import Prices
    from spot.models.paid.recorded import dollars, worst_cost
    from spot.rectify.base import Failure
    from spot.rectify.model_oracle import ModelOracle
    from spot.stages.place import load_problems

    problems = load_problems(config, [])
    attempts = read_rows(place.attempts, Attempt, config.run.on_bad_row, [])
    section = config.rectify
    oracle = open_oracle(config)
    in_process = section.oracle == "self" and config.student.base_url is None
    if not isinstance(oracle, ModelOracle) or in_process or section.oracle not in ("model", "self"):
        return f"the Oracle {section.oracle!r} sends no request that is paid for here"
    problem_of = {problem.id: problem for problem in problems}
    failures = [Failure(problem_of[row.problem_id], row) for row in attempts if row.outcome == "wrong"]
    prices = Prices(section.input_price, section.output_price)
    asked = [(failure, oracle.first(failure, n).request) for n in range(section.candidates) for failure in failures]
    paid = _on_record(place.ledger, [oracle.key(request) for _, request in asked])
    asked = [one for one in asked if oracle.key(one[1]) not in paid]
    requests = [request for _, request in asked]
    prompt = sum(len(message.content) for request in requests for message in request.messages) / CHARACTERS_A_TOKEN
    written = sum(len(failure.attempt.response) for failure, _ in asked) / CHARACTERS_A_TOKEN
    written *= OUTPUT_SHARE[section.mode]
    likely = (prices.input * prompt + prices.output * written) / 1e6
    worst = sum(worst_cost(request, oracle_sampling(section, config.run.seed), prices) for request in requests)
    again = AGAIN[section.mode] * (section.max_rounds if section.mode == "continue" else 1)
    target = f", fewer once {section.target_pairs:,} pairs are there" if section.target_pairs else ""
    have = f" ({len(paid):,} more are on record and cost nothing)" if paid else ""
    told = (
        f"{len(requests):,} requests about {len(failures):,} wrong attempts{have}{target}: about {prompt:,.0f} prompt "
        f"tokens and {written:,.0f} answer tokens (4 characters each, reasoning not counted)"
    )
    if not (section.input_price or section.output_price):
        return f"{told}; for dollars set rectify.input_price and output_price"
    return (
        f"{told}, {dollars(likely)}; {dollars(worst)} if every answer were {section.max_new_tokens:,} tokens long, "
        f"{again} times that if each had to be asked for again as often as may be"
    )


def _on_record(path: Path, keys: Sequence[str]) -> set[str]:
    from spot.models.paid.ledger import Ledger

    if not path.exists():
        return set()
    with Ledger(path, read_only=True) as ledger:
        return {reply.id for group in ledger.replies({key: key for key in keys}) for reply in group}


def ledger_of(path: Path) -> Path:
    """The ledger of a run directory, or the file itself."""
    file = path / "ledger.sqlite" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file}: no ledger; runs that ask a model over a network have one")
    return file


def _is_export(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(2**24)
    try:
        return not first or {"key", "sends", "body"} <= json.loads(first).keys()
    except (ValueError, AttributeError):
        return False


def print_ledger(path: Path, console: "Console") -> None:
    """The account by stage, model and outcome, as a table."""
    from rich.table import Table

    from spot.models.paid.ledger import NO_USAGE, Ledger

    with Ledger(ledger_of(path), read_only=True) as ledger:
        lines, (spent, open_) = ledger.lines(), ledger.spent()
    table = Table("stage", "model", "outcome", box=None, header_style="bold", pad_edge=False)
    for name in ("requests", "prompt tokens", "output tokens", "thinking", "spent", "possibly"):
        table.add_column(name, justify="right")
    for line in lines:
        numbers = (line.requests, line.prompt_tokens, line.completion_tokens, line.reasoning_tokens)
        dollars = [f"${line.cost:.4f}", f"${line.possible:.4f}" if line.possible else ""]
        table.add_row(line.stage, line.model, line.outcome, *(f"{number:,}" for number in numbers), *dollars)
    console.print(table)
    note = f", and up to ${open_:.4f} for tries whose outcome is not known" if open_ else ""
    console.print(f"${spent:.4f} spent{note}", highlight=False)
    if any(line.outcome.endswith(NO_USAGE) for line in lines):
        console.print("replies without usage are counted as the most that they can have cost", highlight=False)
    if lines and not spent and not open_ and any(line.completion_tokens for line in lines):
        console.print("no prices were set when these were asked (input_price, output_price)", highlight=False)


def print_spent(path: Path, console: "Console") -> None:
    """What the ledger at `path` comes to, in a line; nothing where nothing was asked for money."""
    from spot.models.paid.ledger import Ledger
    from spot.models.paid.recorded import dollars

    if not path.exists():
        return
    with Ledger(path, read_only=True) as ledger:
        lines, (spent, open_) = ledger.lines(), ledger.spent()
    if spent or open_:
        possibly = f", up to {dollars(open_)} more may be" if open_ else ""
        thinking, output = sum(one.reasoning_tokens for one in lines), sum(one.completion_tokens for one in lines)
        possibly += f"; {thinking:,} of {output:,} output tokens are thinking" if thinking else ""
        console.print(f"{dollars(spent)} spent{possibly} (spot ledger {path})", highlight=False, soft_wrap=True)


def export_ledger(path: Path, output: Path) -> int:
    """Every request and reply as JSON lines; returns how many. Raises `UserError` where it would replace another file.

    What an earlier export wrote is replaced.
    """
    from spot.models.paid.ledger import Ledger

    if output.is_file() and not _is_export(output):
        raise UserError(f"{output}: exists and is no export of a ledger; name another file")
    with Ledger(ledger_of(path), read_only=True) as ledger:
        rows: list[dict[str, Any]] = [row | {"body": json.loads(row["body"])} for row in ledger.rows()]
    write_atomic(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
