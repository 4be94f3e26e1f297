"""The batch interface of one provider: its files and batches, and what its failures mean, each in one line."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar, cast

import httpx2
import openai

from spot.errors import StoppedEarly, UserError
from spot.models.base import Body
from spot.models.endpoint import error_body
from spot.models.endpoint.connection import OversizedError, client, read_key
from spot.models.endpoint.failures import Diagnosis, FailedTry, dead, no_money
from spot.models.endpoint.pace import RetryPolicy

URL = "/v1/chat/completions"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
ABSENT = frozenset({404, 405, 501})
METADATA = "spot"
DAY = 86400.0

Result = TypeVar("Result")


class UnansweredError(StoppedEarly):
    """The provider gave no usable answer, however often it was tried."""


class BusyError(UnansweredError):
    """The provider takes no more for now."""


class UnclearError(Exception):
    """It is not known whether the provider did what it was asked for."""


class AbsentError(Exception):
    """The provider has no such path, or nothing under that id."""


@dataclass(frozen=True)
class Snapshot:
    """A batch as its provider describes it. `done` counts requests that ended, well or not; `errors` are those of the
    batch as a whole, (code, message)."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    completed: int | None = None
    done: int = 0
    errors: tuple[tuple[str, str], ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED and not self.fileless

    @property
    def fileless(self) -> bool:
        """Whether it has ended with replies, and does not yet say where they are."""
        return self.status in ENDED and bool(self.completed) and not (self.output_file_id or self.error_file_id)


class Provider:
    """A client for one base URL. What may be sent twice is sent again when it fails, as `policy` says.

    Raises `UserError` where the URL, the key or what is sent is refused, `StoppedEarly` where the account is empty or
    it answers no more, `RunFailed` where it never did.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None,
        timeout: float,
        policy: RetryPolicy,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.base_url = base_url
        key = read_key(api_key_env)
        self._diagnosis = Diagnosis(model, api_key_env, key, timeout)
        self._policy = policy
        self._reached = False
        self._client = client(base_url, key, openai.Timeout(timeout, connect=10.0), headers)

    async def __aenter__(self) -> "Provider":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.close()

    def clean(self, text: str) -> str:
        """One short line without the key."""
        return self._diagnosis.clean(text)

    def body(self, line: bytes) -> Body:
        """A line of a batch's output as it is kept."""
        return self._diagnosis.body(line)

    async def upload(self, name: str, file: IO[bytes]) -> str:
        """Upload a batch's input; returns the file's id."""

        async def ask() -> object:
            file.seek(0)
            return await self._client.files.create(file=(name, file), purpose="batch")

        uploaded = await self._asked("/files", ask)
        id = getattr(uploaded, "id", None)
        if not isinstance(id, str):
            raise self._no_interface("/files", "the answer is no file object")
        return id

    async def create(self, file_id: str, token: str) -> Snapshot:
        """Submit a batch; raises `UnclearError` where it is not known whether there is one now."""
        made = await self._asked(
            "/batches",
            lambda: self._client.batches.create(
                input_file_id=file_id, endpoint=URL, completion_window="24h", metadata={METADATA: token}
            ),
            repeatable=False,
        )
        return self._snapshot(made)

    async def find(self, file_id: str, token: str, since: float) -> Snapshot | None:
        """The batch that carries `token` or was made of `file_id` at `since` or later.

        Raises `AbsentError` where the provider lists no batches.
        """

        async def ask() -> object:
            async for batch in self._client.batches.list(limit=100):
                found = cast(Any, batch)
                if (found.metadata or {}).get(METADATA) == token or found.input_file_id == file_id:
                    return found
                if isinstance(found.created_at, int) and found.created_at < since - DAY:
                    break
            return None

        found = await self._answered("/batches", ask)
        return None if found is None else self._snapshot(found)

    async def retrieve(self, batch_id: str) -> Snapshot:
        """A batch's status; raises `AbsentError` where there is none of that id."""
        return self._snapshot(await self._answered("/batches", lambda: self._client.batches.retrieve(batch_id)))

    async def download(self, file_id: str, into: IO[bytes]) -> None:
        """Write a file's content; raises `AbsentError` where there is none of that id."""

        async def ask() -> None:
            into.seek(0)
            into.truncate()
            async with self._client.files.with_streaming_response.content(file_id) as response:
                async for chunk in response.iter_bytes():
                    into.write(chunk)

        await self._answered("/files", ask)

    async def _asked(self, path: str, ask: Callable[[], Awaitable[Result]], repeatable: bool = True) -> Result:
        try:
            return await self._answered(path, ask, repeatable)
        except AbsentError as error:
            raise self._no_interface(path, str(error)) from None

    async def _answered(self, path: str, ask: Callable[[], Awaitable[Result]], repeatable: bool = True) -> Result:
        """What `ask` gives, at the first try at which it gives anything."""
        for tries in range(1, self._policy.tries + 1):
            try:
                result = await ask()
            except (openai.APIError, OversizedError, httpx2.HTTPError, ValueError) as error:
                failure = self._failure(path, error)
                self._reached = self._reached or failure.status is not None
                if failure.about == "unclear" and not repeatable:
                    raise UnclearError(failure.why) from None
                await self._again(path, failure, tries)
            else:
                self._reached = True
                return result
        raise AssertionError("the last failure is raised")

    async def _again(self, path: str, failure: FailedTry, tries: int) -> None:
        """Wait until the next try, or raise what ends them."""
        if failure.about == "money":
            raise no_money(self.base_url, failure)
        if failure.about in ("setup", "absent"):
            raise UserError(failure.why)
        if failure.about == "request":
            raise UserError(f"{self.base_url}{path} refuses what it was sent ({failure.why})")
        too_long = failure.retry_after is not None and failure.retry_after > self._policy.longest_retry_after
        if tries >= self._policy.tries or too_long:
            end = dead(self.base_url, f"{path}: {failure.why}", self._reached)
            kind = BusyError if failure.about == "busy" else UnansweredError
            raise kind(str(end)) if isinstance(end, StoppedEarly) else end
        wait = self._policy.wait(tries) if failure.retry_after is None else failure.retry_after
        await asyncio.sleep(wait)

    def _failure(self, path: str, error: Exception) -> FailedTry:
        diagnosis = self._diagnosis
        if isinstance(error, openai.APIStatusError):
            failure = diagnosis.of_status(self.base_url, path, error, self._reached)
            if error.status_code in ABSENT and failure.about != "money":
                says = error_body.server_says(error.body, error.response.text)
                raise AbsentError(self.clean(f"HTTP {error.status_code}{': ' + says if says else ''}")) from None
            return failure
        if isinstance(error, openai.APITimeoutError):
            return diagnosis.of_timeout(path)
        if isinstance(error, openai.APIConnectionError):
            return diagnosis.of_connection(self.base_url, path, error, self._reached)
        # A body that broke off or is not what it says; the SDK's and its transport's own words.
        return FailedTry(
            path, "unclear", self.clean(f"unreadable answer ({error or type(error).__name__})"), charged=None
        )

    def _no_interface(self, path: str, why: str) -> UserError:
        return UserError(
            f"{self.base_url} has no batch interface ({path}: {why}); is the URL right? It usually ends in /v1; "
            "otherwise use this model without batches"
        )

    def _snapshot(self, batch: object) -> Snapshot:
        told: Any = batch
        if not isinstance(getattr(told, "id", None), str) or not isinstance(getattr(told, "status", None), str):
            raise self._no_interface("/batches", "the answer is no batch object")
        counts, errors = told.request_counts, getattr(told.errors, "data", None) or []
        completed = getattr(counts, "completed", None)
        return Snapshot(
            id=told.id,
            status=self.clean(told.status.lower()),
            output_file_id=told.output_file_id or None,
            error_file_id=told.error_file_id or None,
            completed=completed if isinstance(completed, int) else None,
            done=sum(value for value in (completed, getattr(counts, "failed", None)) if isinstance(value, int)),
            errors=tuple((str(error.code or ""), self.clean(str(error.message or error.code))) for error in errors),
        )
