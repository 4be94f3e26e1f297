"""Where a stage's files are: in a run directory, or beside the output of a single command."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from spot.config import RunConfig
from spot.errors import UserError
from spot.evaluate.run import keep_identity, kept_day
from spot.files.disk import locked
from spot.files.store import RowType, RunDirectory, read_dropped, read_problems, read_rows, write_rows
from spot.plugin import call, registered
from spot.schema import Dropped, Problem
from spot.stages.opening import made_with


@dataclass(frozen=True)
class Place:
    """The files of a stage. In a `run` its directory holds everything and is locked already; beside an output the
    inputs are the user's own files, and the output is locked while a stage writes to it."""

    problems: Path
    attempts: Path
    rectifications: Path
    pairs: Path
    ledger: Path
    queue: Path
    dropped: Path
    identity: Path
    run: RunDirectory | None = None

    @classmethod
    def of_run(cls, run: RunDirectory) -> "Place":
        """In a run directory that is open."""
        return cls(
            problems=run / "problems.jsonl",
            attempts=run / "attempts.jsonl",
            rectifications=run / "rectifications.jsonl",
            pairs=run / "pairs.jsonl",
            ledger=run / "ledger.sqlite",
            queue=run / "human.sqlite",
            dropped=run / "dropped.jsonl",
            identity=run / "manifest.json",
            run=run,
        )

    @classmethod
    def beside(
        cls, output: Path, *, problems: Path, attempts: Path | None = None, rectifications: Path | None = None
    ) -> "Place":
        """Beside `output`, which is what of attempts, rectifications and pairs is not given and comes first.

        Raises `UserError` where `output` is one of the files that are read.
        """
        for path in filter(None, (problems, attempts, rectifications)):
            if output.resolve() == path.resolve():
                raise UserError(f"{output}: is read here; --output names another file")
        return cls(
            problems=problems,
            attempts=attempts or output,
            rectifications=rectifications or output,
            pairs=output,
            ledger=output.with_suffix(".ledger.sqlite"),
            queue=output.with_suffix(".human.sqlite"),
            dropped=output.with_suffix(".dropped.jsonl"),
            identity=output.with_suffix(".model.json"),
        )

    def day(self) -> date:
        """The day on which the answers were begun, for chat templates that print the date."""
        return kept_day(self.identity) if self.run is None else self.run.day()

    @contextmanager
    def writing(self, output: Path, config: RunConfig | None = None) -> Generator[None]:
        """Lock `output`; with `config`, keep which student answers there, and refuse another (a run's config does)."""
        if self.run is not None:
            yield
            return
        with locked(output):
            if config is None:
                yield
                return
            keep_identity(self.identity, made_with(config.student))
            try:
                yield
            finally:
                if not output.exists():
                    self.identity.unlink(missing_ok=True)

    def read_problems(self, config: RunConfig) -> list[Problem]:
        """The questions. A run keeps them from the first stage on; the rows that were skipped are on record."""
        if self.run is not None and self.problems.exists():
            return read_rows(self.problems, Problem)
        skipped: list[Dropped] = []
        rows = load_problems(config, skipped)
        self.drop("read", skipped)  # before the problems are there: after that they are not read again
        if self.run is not None:
            write_rows(self.problems, rows)
        return rows

    def read(self, path: Path, kind: type[RowType], stage: str, config: RunConfig) -> list[RowType]:
        """The rows that `stage` made. A user's own bad rows may be skipped; a run's are never bad."""
        if not path.exists() and self.run is not None:
            raise UserError(f"{path}: not there yet; the stage {stage!r} makes it, add it to run.stages")
        if self.run is not None:
            return read_rows(path, kind)
        skipped: list[Dropped] = []
        rows = read_rows(path, kind, config.run.on_bad_row, skipped)
        self.drop("read", skipped, f"{path}:")
        return rows

    def drop(self, stage: str, rows: Sequence[Dropped], about: str = "") -> None:
        """Record what `stage` dropped, in place of what it recorded before (of details that start with `about`)."""
        others = [row for row in read_dropped(self.dropped) if row.stage != stage or not row.detail.startswith(about)]
        kept = others + [row.model_copy(update={"stage": stage}) for row in rows]
        if kept or self.run is not None:
            write_rows(self.dropped, kept)
        elif self.dropped.exists():
            self.dropped.unlink()

    def note(self) -> str:
        """How many rows were dropped and where they are, for the end of a line; empty where none was."""
        count = len(read_dropped(self.dropped))
        return f", {count:,} dropped (see {self.dropped})" if count else ""


def load_problems(config: RunConfig, skipped: list[Dropped]) -> list[Problem]:
    """The questions of `problems`: the lab's, or a file's first `count`. Raises `UserError` where there is none."""
    section = config.problems
    if registered("problems", section.source):
        return call("problems", section.source, section.count or 2000, config.run.seed, **section.options)
    rows = read_problems(Path(section.source), config.run.on_bad_row, skipped)[: section.count]
    if not rows:
        raise UserError(f"{section.source}: no problems")
    return rows
