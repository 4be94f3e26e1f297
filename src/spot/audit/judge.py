"""A judge model: where no exact judge of steps is at hand, a language model says which steps of a pair are wrong.

It is asked like the Oracle: over its endpoint, every request in the run's ledger (under the stage `judge`) before it is
sent and its raw reply before it is read, so that a kill, a changed parser or a second audit pays for nothing twice. A
reply that was cut off is asked for once more with twice the tokens; what cannot be read leaves its pair unjudged. How
far it is to be believed is measured against labels (`agreement`), and nothing it says is summed up before.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spot import interrupt
from spot.audit.question import RIGHT, JudgePrompt, Question, UnreadableError, read_verdicts
from spot.audit.split import aligned, steps_of
from spot.audit.summary import StepChange
from spot.config import RunConfig
from spot.errors import UserError
from spot.models.base import Model, Reply, Request, Unanswered, closed
from spot.rectify.prompting import problem_text
from spot.schema import Message, Pair, Problem, Prompt, Sampling, derived_seed, text_of
from spot.stages.opening import endpoint, recorded

if TYPE_CHECKING:
    from spot.models.paid.ledger import Ledger

TRUNCATED = "truncated"
LARGER = 2
"""How many times the tokens a reply gets that is asked for again because it was cut off."""

Verdicts = Mapping[str, str]
Answered = Callable[[int, int], None]
"""Called with questions answered and questions asked."""


@dataclass(frozen=True)
class Replies:
    """What came of questions, by their id: verdicts on all steps asked about, or why there are none."""

    verdicts: Mapping[str, Verdicts]
    unjudged: Mapping[str, str]


class JudgeModel:
    """Asks `model` about steps. Raises `UserError` for a prompt that does not exist or does not render."""

    def __init__(self, model: Model, prompt: str | None = None, sampling: Sampling | None = None) -> None:
        self.name = model.name
        self._model = model
        self._prompt = JudgePrompt(prompt)
        self._sampling = sampling or Sampling(temperature=0.0, top_p=1.0)

    @property
    def prompt_version(self) -> str:
        """Name and content hash of the prompt."""
        return self._prompt.version

    @property
    def settings(self) -> str:
        """What, beside name and prompt, decides its verdicts: 8 hex digits over servers and sampling."""
        where = str(getattr(self._model, "fingerprint", self.name))
        parts = json.dumps([where, self._sampling.model_dump()], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:8]

    def question(self, id: str, prompt: Prompt, answer: str, one: Sequence[str], other: Sequence[str] = ()) -> Question:
        """The question about the steps of `one` answer to `prompt`, or of two."""
        problem = problem_text(Problem(id=id, prompt=prompt, answer=answer))
        return self._prompt.question(id, str(self._sampling.seed), problem, answer, one, other)

    def ask(self, questions: Sequence[Question], on_progress: Answered | None = None) -> Replies:
        """Put `questions`, whose ids differ; those that ask about no step are answered without.

        Raises what the model does: `StoppedEarly` where no more may be spent or the endpoint died, among others; it too
        where a question got no reply for a reason that may pass.
        """
        return interrupt.run(self._ask(questions, on_progress))

    async def _ask(self, questions: Sequence[Question], on_progress: Answered | None) -> Replies:
        found: dict[str, Verdicts | str] = {question.id: {} for question in questions if not question.every}
        open_ = [question for question in questions if question.every]
        asked, unanswered = len(open_), Unanswered()
        for attempt in range(2):
            if not open_:
                break
            requests = {request.id: request for request in (self._request(question, attempt) for question in open_)}
            question_of = {question.id: question for question in open_}
            async with closed(self._model.generate(list(requests.values()), self._sampling_of(attempt))) as groups:
                async for replies in groups:
                    for reply in unanswered.sift(replies):
                        question = question_of[requests[reply.id].about]
                        # Many servers refuse more tokens than they have; the first reply was cut off all the same.
                        if not (attempt and reply.finish_reason == "error"):
                            found[question.id] = _read(reply, question)
                    if on_progress is not None:
                        on_progress(len(found), len(questions))
            open_ = [question for question in open_ if found.get(question.id) == TRUNCATED]
        unanswered.check(asked)
        verdicts = {id: one for id, one in found.items() if not isinstance(one, str)}
        reasons = {question.id: found.get(question.id, "no_reply") for question in questions}
        return Replies(verdicts, {id: reason for id, reason in reasons.items() if isinstance(reason, str)})

    def _sampling_of(self, attempt: int) -> Sampling:
        most = self._sampling.max_new_tokens * (LARGER if attempt else 1)
        return self._sampling.model_copy(update={"max_new_tokens": most})

    def _request(self, question: Question, attempt: int) -> Request:
        return Request(
            id=f"{question.id}~judge+{attempt}",
            messages=(Message(role="user", content=question.prompt),),
            seed=derived_seed(self._sampling.seed, "judge", question.id),
            attempt=attempt,
            about=question.id,
        )


def _read(reply: Reply, question: Question) -> Verdicts | str:
    """The verdicts in a reply, or why there are none."""
    if reply.finish_reason == "error":
        return "no_reply"
    if reply.finish_reason == "length":
        return TRUNCATED
    try:
        return read_verdicts(reply.text, question)
    except UnreadableError as error:
        return str(error)


def open_judge(config: RunConfig, ledger: "Ledger") -> JudgeModel | None:
    """The judge that a config names, `None` where it names none. Its limit is its own or, without one, the run's.

    Raises `UserError` where the section is half filled in, the key is missing or the prompt cannot be used.
    """
    section = config.judge
    if section.model is None:
        if section.base_url is not None:
            raise UserError("judge.model is not set; it is the judge's name at judge.base_url")
        return None
    if section.base_url is None:
        raise UserError("judge.base_url is not set; a judge is asked over one (for example https://host/v1)")
    limit = section.max_cost or min(filter(None, (config.rectify.max_cost, config.student.max_cost)), default=None)
    if limit is not None and not (section.input_price or section.output_price):
        raise UserError(f"the run may cost ${limit:g}: set judge.input_price and judge.output_price to keep to it")
    model = recorded(endpoint(section, section.model), ledger, "judge", section, limit)
    sampling = Sampling(
        temperature=section.temperature,
        top_p=section.top_p,
        max_new_tokens=section.max_new_tokens,
        seed=config.run.seed,
    )
    return JudgeModel(model, section.prompt, sampling)


def pair_question(judge: JudgeModel, pair: Pair, problem: Problem) -> Question:
    """The question about a pair's two answers, the rejected one given first."""
    sides = [steps_of(text_of(side)) for side in (pair.rejected, pair.chosen)]
    return judge.question(pair.id, problem.prompt, problem.answer, *sides)


def pair_changes(question: Question, verdicts: Verdicts) -> list[StepChange]:
    """Every step from the first that differs on, as both answers have it and as the judge finds it.

    A step that only one answer has counts as right in the other, where it has no text.
    """
    shared = question.shared
    rejected, chosen = (steps[shared:] for steps in question.steps)
    before, after = (_kinds(numbers, verdicts) for numbers in question.asked)
    return [
        StepChange(
            step=shared + place,
            rejected_kinds=[] if row is None else before[row],
            chosen_kinds=[] if column is None else after[column],
            rejected_text="" if row is None else rejected[row],
            chosen_text="" if column is None else chosen[column],
        )
        for place, (row, column) in enumerate(aligned(rejected, chosen))
    ]


def _kinds(numbers: Sequence[str], verdicts: Verdicts) -> list[list[str]]:
    """What is wrong with each step."""
    return [[] if verdicts[number] == RIGHT else [verdicts[number]] for number in numbers]
