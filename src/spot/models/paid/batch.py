"""A model behind the batch interface of an OpenAI-compatible provider: half the price, an answer within a day.

What is sent and what comes of it is noted in the ledger's file (`batch_book`), so any later process resumes it:
it collects batches that were submitted, looks up those that may have been, and sends only what is in none. What a
batch gave no reply for is sent again in a new one, a few times.

What was on its way when a run began is collected before anything else is admitted, since a turnstile does not know
of it. What a batch gave no reply for is booked here, in one commit with what becomes of it; the gate is only
told that the try is over.
"""

from collections.abc import AsyncIterator, Callable, Collection, Sequence

from spot.errors import UserError
from spot.models.base import Gate, Reply, Request, closed, request_key
from spot.models.endpoint.model import EndpointModel
from spot.models.endpoint.pace import RetryPolicy
from spot.models.paid.batch_book import BatchBook
from spot.models.paid.batch_provider import Provider
from spot.models.paid.batch_requests import Job, Limits, Outbox, write_line
from spot.models.paid.batch_run import BatchRun, Terms, Waits
from spot.models.paid.ledger import Ledger
from spot.schema import Sampling

__all__ = ["BatchModel", "Limits", "Waits"]


class BatchModel:
    """The model behind `endpoint`, over its provider's batch interface; implements `spot.models.base.Model`.

    `ledger` is where batches are remembered; behind a `RecordedModel` it is the same one. Without `wait`, `generate`
    submits, yields what is ready and raises `StoppedEarly` where something is not. A request that `rounds` batches gave
    nothing for gets an error reply. `give_up` names batches (or their input files) whose requests are sent again,
    though it is not known what became of them. `timeout` is the most seconds in which a server may send nothing; `say`
    gets lines about progress.

    Raises `UserError` where `endpoint` has several URLs or something does not fit together.
    """

    def __init__(
        self,
        endpoint: EndpointModel,
        ledger: Ledger,
        *,
        wait: bool = True,
        limits: Limits | None = None,
        rounds: int = 3,
        give_up: Collection[str] = (),
        waits: Waits | None = None,
        timeout: float = 120.0,
        retry: RetryPolicy | None = None,
        say: Callable[[str], None] | None = None,
        gate: Gate | None = None,
    ) -> None:
        if len(endpoint.base_urls) != 1:
            raise UserError("base_url: batches need one URL; results lie only where they were submitted")
        self.name = endpoint.name
        self.gate = gate
        self._endpoint = endpoint
        self._base_url = endpoint.base_urls[0]
        self._book = BatchBook(ledger, self._base_url)
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._terms = Terms(
            wait=wait,
            limits=limits or Limits(),
            rounds=rounds,
            give_up=frozenset(give_up),
            waits=waits or Waits(),
            say=say or _silence,
            folder=ledger.path.parent,
        )

    @property
    def fingerprint(self) -> str:
        """As the endpoint's: a reply that came one way is not requested the other way."""
        return self._endpoint.fingerprint

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """Answer what is not in `done`, a batch's replies when it has ended.

        Raises `UserError` where the URL has no batch interface or refuses the key or the requests, and `StoppedEarly`
        where the account is empty, the server answers no more, or a batch is not ready and `wait` is false.
        """
        jobs = self._jobs(requests, sampling, done)
        if not jobs:
            return
        gate = self.gate

        def write(request: Request, key: str) -> bytes:
            return write_line(key, self._endpoint.body(request, sampling))

        async with Provider(
            self.name,
            self._base_url,
            self._endpoint.api_key_env,
            self._timeout,
            self._retry,
            headers=self._endpoint.headers,
        ) as provider:
            outbox = Outbox(gate, sampling, write, self._terms.waits.grace)
            run = BatchRun(self._terms, self._book, provider, outbox, gate, jobs)
            try:
                async with closed(run.replies()) as groups:
                    async for replies in groups:
                        yield replies
            finally:
                await run.close()

    def _jobs(self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str]) -> dict[str, Job]:
        jobs: dict[str, Job] = {}
        for request in requests:
            if request.id not in done:
                job = Job(request, request_key(self.fingerprint, request, sampling))
                other = jobs.setdefault(job.key, job)
                if other is not job:
                    raise UserError(
                        f"requests {other.request.id!r} and {request.id!r} are the same; give each its own seed, "
                        "candidate or attempt"
                    )
        return jobs


def _silence(_: str) -> None:
    return None
