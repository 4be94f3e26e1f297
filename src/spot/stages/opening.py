"""From sections of a config to what they name: the student, the Oracle, their endpoints and the ledger between."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spot.chat_template import Day
from spot.config import EndpointSettings, ProblemsSection, RectifySection, RunConfig, StudentSection
from spot.errors import UserError
from spot.files.store import OnBadRow
from spot.hub import fingerprint, model_path
from spot.models.base import Model, Reply, Request, closed
from spot.plugin import registered
from spot.schema import Dropped, Problem, Sampling
from spot.verify.base import Verifier

if TYPE_CHECKING:
    from spot.models.endpoint.model import EndpointModel
    from spot.models.paid.ledger import Ledger
    from spot.rectify.base import Oracle
    from spot.rectify.target import Target

Needed = TypeVar("Needed")
ASKED_BY_PROMPT = ("mode", "candidates", "target_pairs")
"""Settings that only an Oracle reads which is a model that we prompt."""


def open_model(
    section: StudentSection,
    trained: Path | None = None,
    ledger: "Ledger | None" = None,
    stage: str = "elicit",
    day: Day = None,
) -> Model:
    """The student, behind its endpoint or in process; or in process what it became by training.

    Rows call the student by `student.model` and the other `trained`, with a fingerprint of the files. What it is asked
    over a network goes through `ledger`, where there is one, as `stage`. In process, prompts that print the date print
    `day`.
    """
    if section.base_url is not None and trained is None:
        if ledger is None and section.max_cost is not None:
            raise UserError("student.max_cost: nothing keeps an account here; spot run, rectify and eval do")
        return recorded(endpoint(section, section.served_as or section.model), ledger, stage, section)
    from spot.models.local.model import LocalModel

    path = model_path(section.model) if trained is None else str(trained)
    return LocalModel(
        path,
        batch_size=section.batch_size,
        device=section.device,
        dtype=section.dtype,
        enable_thinking=section.enable_thinking,
        name=_student_name(section, trained),
        day=day,
    )


def _student_name(section: StudentSection, trained: Path | None = None) -> str:
    path = Path(model_path(section.model) if trained is None else trained)
    label = section.model if trained is None else "trained"
    return f"{label}@{fingerprint(path)}" if path.is_dir() else label


def endpoint(section: EndpointSettings, name: str) -> "EndpointModel":
    """The model `name` at the servers of `section`."""
    from spot.models.endpoint.model import EndpointModel

    assert section.base_url is not None
    return EndpointModel(
        name,
        section.base_url,
        section.api_key_env,
        section.concurrency,
        timeout=section.timeout,
        extra_body=section.extra_body,
        extra_headers=section.extra_headers,
        omit=section.omit,
        tokens_field=section.tokens_field,
        requests_per_minute=section.requests_per_minute,
        tokens_per_minute=section.tokens_per_minute,
    )


def recorded(
    model: Model, ledger: "Ledger | None", stage: str, section: EndpointSettings, max_cost: float | None = None
) -> Model:
    """`model` behind `ledger` with the prices and the limit of `section`, or another; itself without a ledger."""
    if ledger is None:
        return model
    from spot.models.paid.ledger import Prices
    from spot.models.paid.recorded import RecordedModel

    return RecordedModel(
        model, ledger, stage, Prices(section.input_price, section.output_price), max_cost or section.max_cost
    )


class LazyModel:
    """A model in process that is loaded when it is first asked; implements `spot.models.base.Model`."""

    def __init__(self, name: str, fingerprint: str, load: Callable[[], Model]) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._load = load
        self._model: Model | None = None

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """As the model does."""
        if all(request.id in done for request in requests):
            return
        self._model = self._model or self._load()
        async with closed(self._model.generate(requests, sampling, done)) as groups:
            async for replies in groups:
                yield replies


@dataclass(frozen=True)
class Asking:
    """What an Oracle is opened with beside its config; without a ledger nothing is recorded (it is only looked at).

    `queue` is where corrections wait for people; `say` gets lines about what takes long; `day` is the date in
    prompts of a student in process.
    """

    ledger: "Ledger | None" = None
    target: "Target | None" = None
    problems: Sequence[Problem] = ()
    queue: Path | None = None
    say: Callable[[str], None] | None = None
    on_bad_row: OnBadRow = "error"
    dropped: list[Dropped] = field(default_factory=list[Dropped])
    day: Day = None


def open_verifier(section: ProblemsSection) -> Verifier:
    """The verifier of a run's problems."""
    from spot.verify.resolve import resolve

    return resolve(section.verifier, section.answer_pattern)


def open_oracle(config: RunConfig, asking: Asking | None = None) -> "Oracle":
    """The Oracle that a config names; bad rows of a file of corrections go to `dropped` if skipped."""
    section, asking = config.rectify, asking or Asking()
    _check(section)
    if section.oracle == "import":
        from spot.rectify.imported import ImportedOracle

        path = needed(section.path, "rectify.path", "the file of corrections")
        return ImportedOracle(path, on_bad_row=asking.on_bad_row, dropped=asking.dropped)
    if section.oracle == "model":
        name = needed(section.model, "rectify.model", "the Oracle's name at its endpoint")
        needed(section.base_url, "rectify.base_url", "for example https://host/v1")
        return _asked(config, asking, _batched(endpoint(section, name), asking, section), f"model:{name}")
    if section.oracle == "self":
        return _asked(config, asking, _student(config, asking.day), f"self:{_student_name(config.student)}")
    if section.oracle == "human":
        from spot.rectify.human import HumanOracle

        return HumanOracle(asking.queue or config.run.dir / "human.sqlite", open_verifier(config.problems))
    if ":" not in section.oracle and not registered("oracle", section.oracle):
        known = "model, self, human, scripted, import, module:function"
        raise UserError(f"rectify.oracle: unknown Oracle {section.oracle!r}; known: {known}")
    return _own(config, asking)


def _own(config: RunConfig, asking: Asking) -> "Oracle":
    """The Oracle of a registered or the user's function, or one that prompts the model which the function returns."""
    from spot.rectify.own import OwnOracle, Setting, load_oracle

    section = config.rectify
    prompted = section.mode != "rewrite" or section.candidates > 1 or section.target_pairs is not None
    setting = Setting(asking.problems, section.mode, prompted, config.problems.options)
    oracle = load_oracle(section.oracle, section.oracle_options, setting)
    if not isinstance(oracle, OwnOracle):
        return _asked(config, asking, oracle, oracle.name)
    _refuse(section, ASKED_BY_PROMPT)
    return oracle


def _check(section: RectifySection) -> None:
    """Raise `UserError` on settings that this Oracle would not read."""
    if section.batch and (section.oracle != "model" or isinstance(section.base_url, list)):
        raise UserError("rectify.batch needs rectify.oracle=model and one rectify.base_url")
    if section.give_up and not section.batch:
        raise UserError("rectify.give_up names batches; it needs rectify.batch=true")
    own = ":" in section.oracle or registered("oracle", section.oracle) is not None
    _refuse(section, () if own else ("oracle_options",))
    _refuse(section, ASKED_BY_PROMPT if section.oracle in ("human", "import") else ())
    if section.oracle == "self" and section.model is not None:
        raise UserError("rectify.model: the Oracle 'self' is the student (student.model); leave it out")


def _refuse(section: RectifySection, keys: Sequence[str]) -> None:
    """Raise `UserError` where one of `keys`, which this Oracle does not read, is set."""
    for key in keys:
        if getattr(section, key) != RectifySection.model_fields[key].get_default(call_default_factory=True):
            raise UserError(f"rectify.{key}: the Oracle {section.oracle!r} does not read it; leave it out")


def _batched(model: "EndpointModel", asking: Asking, section: RectifySection) -> Model:
    if not section.batch or asking.ledger is None:
        return model
    from spot.models.paid.batch import BatchModel

    return BatchModel(model, asking.ledger, wait=False, give_up=section.give_up, say=asking.say)


def made_with(student: StudentSection) -> str:
    """What, beside messages and sampling, decides the student's replies."""
    if student.base_url is not None:
        return endpoint(student, student.served_as or student.model).fingerprint
    return f"{_student_name(student)} {student.dtype} thinking={student.enable_thinking}"


def _student(config: RunConfig, day: Day) -> Model:
    student = config.student
    if student.base_url is not None:
        return endpoint(student, student.served_as or student.model)
    return LazyModel(_student_name(student), made_with(student), lambda: open_model(student, day=day))


def _asked(config: RunConfig, asking: Asking, model: Model, name: str) -> "Oracle":
    from spot.rectify.model_oracle import Continuation, ModelOracle

    section = config.rectify
    own_prices = config.student.input_price or config.student.output_price
    prices: EndpointSettings = config.student if section.oracle == "self" and own_prices else section
    # One account, one limit.
    limit = min(filter(None, (section.max_cost, config.student.max_cost)), default=None)
    oracle_model: Any = recorded(model, asking.ledger, "rectify", prices, limit)
    if asking.ledger is not None:
        oracle_model.turnstile = asking.target
    continuation = None
    if section.mode == "continue":
        student = recorded(_student(config, asking.day), asking.ledger, "continue", config.student, limit)
        sampling = config.elicit.sampling(config.run.seed)
        continuation = Continuation(student, sampling, open_verifier(config.problems), section.max_rounds)
    return ModelOracle(
        oracle_model,
        section.with_answer,
        section.prompt,
        oracle_sampling(section, config.run.seed),
        mode=section.mode,
        candidates=section.candidates,
        continuation=continuation,
        target=asking.target,
        name=name,
    )


def oracle_sampling(section: RectifySection, seed: int) -> Sampling:
    """How the Oracle is asked."""
    return Sampling(
        temperature=section.temperature, top_p=section.top_p, max_new_tokens=section.max_new_tokens, seed=seed
    )


def needed(value: Needed | None, key: str, meaning: str) -> Needed:
    """`value`, or a `UserError` that names the key where it is not set."""
    if value is None:
        raise UserError(f"{key} is not set; this Oracle needs it ({meaning})")
    return value
