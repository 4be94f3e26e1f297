"""What rectification will cost, and what it has cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spot.config import RunConfig
from spot.errors import UserError
from spot.opening import open_oracle, oracle_sampling
from spot.schema import Attempt, Problem
from spot.store import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

CHARACTERS_A_TOKEN = 4.0
AGAIN = {"rewrite": 3, "patch": 5, "continue": 5}
"""The most that asking again comes to, in times of the first reply's tokens: cut off (twice the tokens), and for edits
and steps told back once more."""
OUTPUT_SHARE = {"rewrite": 1.1, "patch": 0.35, "continue": 0.15}
"""Tokens that an Oracle writes, as a share of the answer's, roughly; reasoning comes on top (benchmarks/modes.py)."""


def estimate(problems: Sequence[Problem], attempts: Sequence[Attempt], config: RunConfig) -> str:
    """What asking about all wrong attempts would cost, likely and at the worst, in one line."""
    from spot.models.ledger import Prices
    from spot.models.recorded import worst_cost
    from spot.rectify.base import Failure
    from spot.rectify.model_oracle import ModelOracle

    section = config.rectify
    oracle = open_oracle(config)
    if not isinstance(oracle, ModelOracle):
        return f"the Oracle {section.oracle!r} sends no request that is paid for here"
    problem_of = {problem.id: problem for problem in problems}
    failures = [Failure(problem_of[row.problem_id], row) for row in attempts if row.outcome == "wrong"]
    prices = Prices(section.input_price, section.output_price)
    requests = [oracle.first(failure, n).request for n in range(section.candidates) for failure in failures]
    prompt = sum(len(message.content) for request in requests for message in request.messages) / CHARACTERS_A_TOKEN
    written = section.candidates * sum(len(failure.attempt.response) for failure in failures) / CHARACTERS_A_TOKEN
    written *= OUTPUT_SHARE[section.mode]
    likely = (prices.input * prompt + prices.output * written) / 1e6
    worst = sum(worst_cost(request, oracle_sampling(section, config.run.seed), prices) for request in requests)
    again = AGAIN[section.mode] * (section.max_rounds if section.mode == "continue" else 1)
    target = f", fewer once {section.target_pairs:,} pairs are there" if section.target_pairs else ""
    unpriced = "" if section.input_price or section.output_price else "; set rectify.input_price and output_price"
    return (
        f"{len(requests):,} requests about {len(failures):,} wrong attempts{target}: about {prompt:,.0f} prompt tokens "
        f"and {written:,.0f} answer tokens (4 characters each, reasoning not counted), ${likely:.2f}; "
        f"${worst:.2f} if every answer were {section.max_new_tokens:,} tokens long, {again} times that if each had to "
        f"be asked for again as often as may be{unpriced}"
    )


def ledger_of(path: Path) -> Path:
    """The ledger of a run directory, or the file itself."""
    file = path / "ledger.sqlite" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file}: no ledger; runs that ask a model over a network have one")
    return file


def print_ledger(path: Path, console: "Console") -> None:
    """The account by stage, model and outcome, as a table."""
    from rich.table import Table

    from spot.models.ledger import Ledger

    with Ledger(ledger_of(path), read_only=True) as ledger:
        lines, (spent, open_) = ledger.lines(), ledger.spent()
    table = Table("stage", "model", "outcome", box=None, header_style="bold", pad_edge=False)
    for name in ("requests", "prompt tokens", "answer tokens", "spent", "possibly"):
        table.add_column(name, justify="right")
    for line in lines:
        numbers = (line.requests, line.prompt_tokens, line.completion_tokens)
        dollars = [f"${line.cost:.4f}", f"${line.possible:.4f}" if line.possible else ""]
        table.add_row(line.stage, line.model, line.outcome, *(f"{number:,}" for number in numbers), *dollars)
    console.print(table)
    note = f", and up to ${open_:.4f} for tries whose outcome is not known" if open_ else ""
    console.print(f"${spent:.4f} spent{note}", highlight=False)


def export_ledger(path: Path, output: Path) -> int:
    """Every request and reply as JSON lines; returns how many."""
    from spot.models.ledger import Ledger

    with Ledger(ledger_of(path), read_only=True) as ledger:
        rows: list[dict[str, Any]] = [row | {"body": json.loads(row["body"])} for row in ledger.rows()]
    write_atomic(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
