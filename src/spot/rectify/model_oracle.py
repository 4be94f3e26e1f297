"""The Oracle that is a language model: any `Model`, prompted with or without the known answer, in one of three modes.

In `rewrite` it writes the whole corrected answer, in `patch` edits of the student's text, in `continue` the first wrong
step, corrected, from which the student itself continues. A reply is recorded before it is read (see
`spot.models.paid.recorded`), so a parser that fails, a kill or a changed check never makes the same request twice.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from spot.models.base import Model, Reply, Request, closed, request_key
from spot.rectify.base import Correction, Failure
from spot.rectify.coherence import check_student, restarts
from spot.rectify.parse import Markers, Parsed, extract_block, flaw, plain_reply
from spot.rectify.patch import EditError, apply_edits
from spot.rectify.prompting import load_prompt, problem_text, render_tell_back, tell_back_version
from spot.rectify.steps import StepError, read_step
from spot.rectify.target import Target
from spot.schema import Message, Mode, Sampling, as_messages, derived_seed
from spot.verify.base import Verifier

AskedMode = Literal["rewrite", "patch", "continue"]
LARGER = 2
"""How many times the tokens a reply gets whose request is repeated because it was cut off."""


@dataclass(frozen=True)
class Continuation:
    """The student, which continues from the Oracle's step in the mode `continue`, and the verifier of its answer."""

    student: Model
    sampling: Sampling
    verifier: Verifier
    max_rounds: int = 4


@dataclass(frozen=True)
class _Asking:
    """One candidate on its way: what is asked next. `failure` holds the text to be corrected now."""

    failure: Failure
    candidate: int
    request: Request
    markers: Markers
    rounds: int = 0
    told_back: bool = False
    enlarged: bool = False


@dataclass(frozen=True)
class _Unfinished:
    """One candidate whose answer the student continues from `prefix`."""

    asking: _Asking
    prefix: str


_Next = Correction | _Asking | _Unfinished


class ModelOracle:
    """Corrects by asking `model` for `candidates` corrections of each failure; implements `spot.rectify.base.Oracle`.

    `prompt` is the name of a prompt of this package or the path of the user's own; `None` takes the package's for the
    mode and `with_answer`. A request whose reply is cut off is repeated once with twice the tokens. The model is told
    once which edits and steps cannot be used. With a `target`, failures that are no longer needed are not asked.

    Raises `UserError` for a prompt that does not exist or does not render.
    """

    def __init__(
        self,
        model: Model,
        with_answer: bool,
        prompt: str | None = None,
        sampling: Sampling | None = None,
        *,
        mode: AskedMode = "rewrite",
        candidates: int = 1,
        continuation: Continuation | None = None,
        target: Target | None = None,
        name: str | None = None,
    ) -> None:
        assert (mode == "continue") == (continuation is not None), "the mode continue needs the student"
        self.name = name or f"model:{model.name}"
        self.mode: Mode = mode
        self.candidates = candidates
        self.target = target
        self._model = model
        self._template = load_prompt(prompt, with_answer, mode)
        self._sampling = sampling or Sampling()
        self._continuation = continuation
        self._stored: frozenset[str] = frozenset()

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """Corrections in groups as they come; what has to be asked again is asked once all have been asked.

        Raises `UserError`, before the Oracle is asked, where the student's server does not continue a given beginning.
        """
        if self._continuation is not None:
            await check_student(self._continuation.student, self._continuation.sampling, failures)
        if self.target is None or getattr(self._model, "gated", False):
            async with closed(self._corrected(failures)) as groups:
                async for corrections in groups:
                    yield corrections
            return
        # Nobody lets the requests of a model in process out one by one: it gets as many failures as pairs are missing.
        rest = list(failures)
        while rest and (missing := self.target.missing):
            async with closed(self._corrected(rest[:missing])) as groups:
                async for corrections in groups:
                    yield corrections
            del rest[:missing]

    async def _corrected(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        # Candidate by candidate, but where so many pairs are wanted: there a failure has all its chances while it is on
        # its way.
        asked_about = [(failure, n) for n in range(self.candidates) for failure in failures]
        if self.target is not None:
            asked_about = [(failure, n) for failure in failures for n in range(self.candidates)]
        open_: list[_Asking] = [self.first(failure, n) for failure, n in asked_about]
        while open_:
            following: list[_Next] = []
            for enlarged in (False, True):
                asked = {asking.request.id: asking for asking in open_ if asking.enlarged == enlarged}
                if not asked:
                    continue
                requests = [asking.request for asking in asked.values()]
                replies_of = self._model.generate(requests, self._sampling_of(enlarged), self._stored)
                async with closed(replies_of) as groups:
                    async for replies in groups:
                        outcomes = [self._read(asked[reply.id], reply) for reply in replies]
                        if self.target is not None:
                            # At once: their failures are on their way until it is known whether they bring a pair.
                            unfinished = [outcome for outcome in outcomes if isinstance(outcome, _Unfinished)]
                            outcomes = [outcome for outcome in outcomes if not isinstance(outcome, _Unfinished)]
                            async with closed(self._continued(unfinished)) as answers:
                                async for continued in answers:
                                    outcomes += continued
                        following += self._later(outcomes)
                        if corrections := [outcome for outcome in outcomes if isinstance(outcome, Correction)]:
                            yield corrections
            async with closed(
                self._continued([item for item in following if isinstance(item, _Unfinished)])
            ) as answers:
                async for continued in answers:
                    following += self._later(continued)
                    if corrections := [outcome for outcome in continued if isinstance(outcome, Correction)]:
                        yield corrections
            open_ = [item for item in following if isinstance(item, _Asking)]

    def judged(self, correction: Correction, accepted: bool) -> None:
        """A correction was looked at; `accepted` says that its failure has its pair."""
        if self.target is not None:
            self.target.leave(correction.attempt_id, correction.candidate, accepted=accepted)

    def have(self, failure: Failure, candidate: int) -> None:
        """A correction is stored already: its model is known to answer."""
        self._stored |= {self._request_id(failure, candidate, 0)}

    def first(self, failure: Failure, candidate: int) -> _Asking:
        """What is asked first about a failure."""
        return self._asking(failure, candidate, number=0, rounds=0)

    def key(self, request: Request) -> str:
        """The ledger's key of a first request."""
        return request_key(str(getattr(self._model, "fingerprint", self._model.name)), request, self._sampling)

    def identity(self, failure: Failure, candidate: int) -> str:
        """16 hex digits of a hash of what is asked first and how; not of where, since servers move."""
        return request_key(self._model.name, self.first(failure, candidate).request, self._sampling)[:16]

    def _asking(self, failure: Failure, candidate: int, number: int, rounds: int) -> _Asking:
        attempt = failure.attempt
        salt = str(self._sampling.seed)
        material = (attempt.response, problem_text(failure.problem), failure.problem.answer)
        markers = Markers.derive(attempt.id, salt, *material, mode=self.mode, attempt=number)
        message = Message(role="user", content=self._template.render(failure, markers))
        request = Request(
            id=self._request_id(failure, candidate, number),
            messages=(message,),
            seed=derived_seed(self._sampling.seed, "rectify", attempt.id, candidate),
            candidate=candidate,
            attempt=number,
            about=attempt.id,
        )
        return _Asking(failure, candidate, request, markers, rounds)

    def _request_id(self, failure: Failure, candidate: int, number: int) -> str:
        again = f"+{number}" if number else ""
        return f"{failure.attempt.id}~{self.name}.{candidate}{again}"

    def _sampling_of(self, enlarged: bool) -> Sampling:
        if not enlarged:
            return self._sampling
        return self._sampling.model_copy(update={"max_new_tokens": LARGER * self._sampling.max_new_tokens})

    def _later(self, outcomes: Sequence[_Next]) -> list[_Next]:
        """Those that are no correction yet; they make room for others until their turn comes."""
        later: list[_Next] = []
        for outcome in outcomes:
            if isinstance(outcome, Correction):
                continue
            later.append(outcome)
            asking = outcome.asking if isinstance(outcome, _Unfinished) else outcome
            if self.target is not None:
                self.target.leave(asking.request.about, asking.candidate)
        return later

    def _read(self, asking: _Asking, reply: Reply) -> _Next:
        """What a reply leads to. A text with a reason cannot be used and is kept to be looked at."""
        if reply.passing:
            return replace(self._correction(asking, None, "no_reply", reply.error), passing=True)
        if reply.finish_reason == "error":
            # Many servers refuse more tokens than they have; the first reply was cut off all the same.
            return self._correction(asking, None, "truncated" if asking.enlarged else "no_reply", reply.error)
        if reply.finish_reason == "length":
            return self._correction(asking, None, "truncated") if asking.enlarged else self._enlarged(asking)
        parsed = plain_reply(reply.text) if self._template.plain else extract_block(reply.text, asking.markers)
        if parsed.text is None:
            return self._unreadable(asking, reply, parsed)
        try:
            return self._applied(asking, parsed.text)
        except (EditError, StepError) as error:
            return self._told_back(asking, reply, str(error)) or self._correction(asking, None, "does_not_apply")

    def _applied(self, asking: _Asking, block: str) -> _Next:
        """What the Oracle wrote, in the sense of the mode."""
        response = asking.failure.attempt.response
        if self.mode == "rewrite":
            return self._finished(asking, block)
        if self.mode == "patch":
            return self._finished(asking, apply_edits(response, block, asking.markers))
        step = read_step(response, block, asking.markers)
        return _Unfinished(asking, response[: step.start] + step.text)

    def _unreadable(self, asking: _Asking, reply: Reply, parsed: Parsed) -> _Next:
        # A whole answer written again is as dear as a new candidate; edits are not.
        again = None if self.mode == "rewrite" else self._told_back(asking, reply, parsed.reason)
        return again or self._correction(asking, None, parsed.reason)

    def _finished(self, asking: _Asking, text: str) -> Correction:
        failure = asking.failure
        return self._correction(asking, text, flaw(text, failure.attempt.response, problem_text(failure.problem)))

    def _enlarged(self, asking: _Asking) -> _Asking:
        return replace(self._again(asking, asking.request.messages), enlarged=True)

    def _told_back(self, asking: _Asking, reply: Reply, complaint: str) -> _Asking | None:
        """The same once more, with what was wrong about the reply; `None` where that was said before."""
        if asking.told_back:
            return None
        said = Message(role="assistant", content=reply.text)
        told = Message(role="user", content=render_tell_back(complaint, asking.markers, self.mode))
        return replace(self._again(asking, (*asking.request.messages, said, told)), told_back=True)

    def _again(self, asking: _Asking, messages: tuple[Message, ...]) -> _Asking:
        number = asking.request.attempt + 1
        request = replace(
            asking.request,
            id=self._request_id(asking.failure, asking.candidate, number),
            messages=messages,
            attempt=number,
        )
        return replace(asking, request=request)

    async def _continued(self, unfinished: Sequence[_Unfinished]) -> AsyncIterator[list[_Next]]:
        """What becomes of answers that the student continues."""
        enough = self.target is not None and not self.target.missing
        if self._continuation is None or not unfinished or enough:
            return
        student, sampling = self._continuation.student, self._continuation.sampling
        waiting = {item.asking.request.id: item for item in unfinished}
        requests = [
            replace(
                item.asking.request,
                messages=tuple(as_messages(item.asking.failure.problem.prompt)),
                seed=derived_seed(sampling.seed, "continue", item.asking.request.id),
                prefix=item.prefix,
            )
            for item in unfinished
        ]
        async with closed(student.generate(requests, sampling)) as groups:
            async for replies in groups:
                yield await asyncio.to_thread(self._judged, [(waiting[reply.id], reply) for reply in replies])

    def _judged(self, continued: Sequence[tuple[_Unfinished, Reply]]) -> list[_Next]:
        return [self._read_continuation(item, reply) for item, reply in continued]

    def _read_continuation(self, item: _Unfinished, reply: Reply) -> _Next:
        assert self._continuation is not None
        asking = item.asking
        if reply.finish_reason != "stop":
            reason = "truncated" if reply.finish_reason == "length" else "no_reply"
            return replace(self._correction(asking, None, reason, reply.error), passing=reply.passing)
        text = item.prefix + reply.text
        failure = asking.failure
        if restarts(item.prefix, failure.attempt.response, reply.text):
            return self._correction(asking, text, "restarts")
        right = self._continuation.verifier(text, failure.problem).correct
        if right or asking.rounds + 1 >= self._continuation.max_rounds:
            return self._finished(asking, text)
        now = Failure(failure.problem, failure.attempt.model_copy(update={"response": text, "token_ids": None}))
        return self._asking(now, asking.candidate, asking.request.attempt + 1, asking.rounds + 1)

    def _correction(self, asking: _Asking, text: str | None, reason: str, detail: str = "") -> Correction:
        endpoint = str(getattr(self._model, "fingerprint", self._model.name))
        return Correction(
            attempt_id=asking.failure.attempt.id,
            text=text,
            reason=reason,
            detail=detail,
            candidate=asking.candidate,
            prompt_version=self._template.version + (f"+{tell_back_version()}" if asking.told_back else ""),
            ledger_key=request_key(endpoint, asking.request, self._sampling_of(asking.enlarged)),
        )
