"""What a try without a reply means: for its request, for the server, for the run."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

import openai

from spot.errors import RunFailed, StoppedEarly, UserError
from spot.models.base import Body, Reply
from spot.models.endpoint import error_body
from spot.models.endpoint.completion import Rejected, UnreadableError
from spot.models.endpoint.connection import SECRET, OversizedError, without_key

# That many requests given up in a row, with no answer in between, say that the endpoint is to blame and not they.
PATIENCE = 8

RETRIED_STATUS = frozenset({408, 409, 429})

UNKNOWN_STATUS = frozenset({408, 502, 504, 520, 524})
"""A server or a proxy gave up waiting: the server behind it may have answered. All others are sent before any work, 529
(overloaded) and those of a proxy that did not reach its server (521, 522, 523, 525, 526, 530) among them."""

BUSY_STATUS = frozenset({429, 529})

UNSENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
)
"""The transport's errors before the first byte of a request has left."""

About = Literal["request", "unclear", "unreadable", "busy", "gone", "absent", "money", "setup"]
"""Who failed: the request; it or the server; this reader, to which the server would send the same again; the server,
which has too much to do, went away, or never was there; the account; the user's set-up."""

RESUMES = "all replies so far are kept, and the same command resumes"


@dataclass(frozen=True)
class FailedTry:
    """A try without a reply. `charged` is `None` where the server may have worked for it; `retry_after` in seconds.

    `until` is when the server takes requests again (seconds since 1970), where that is too far off to wait for.
    """

    id: str
    about: About
    why: str
    charged: bool | None = False
    status: int | None = None
    retry_after: float | None = None
    until: float | None = None
    hung: bool = False

    @property
    def refused(self) -> bool:
        """Whether the server says that it has too much to do."""
        return self.status in BUSY_STATUS or self.status == 503

    @property
    def passing(self) -> bool:
        """Whether another command may have an answer: not where the server refused this very request."""
        return self.about != "request" or self.status == 200  # 200: something else answered, in no format of ours


@dataclass(frozen=True)
class Diagnosis:
    """Tells failures apart. `key` is known here only so that it can be taken out of what servers say."""

    model: str
    api_key_env: str | None
    key: str | None
    timeout: float

    def of_status(self, base_url: str, id: str, error: openai.APIStatusError, answered: bool) -> FailedTry:
        """An HTTP status that is an error, from a server that has `answered` something before or not."""
        says = error_body.server_says(error.body, error.response.text)
        failed = self._failed(base_url, id, (error.status_code, error.body, says), answered, "HTTP {}")
        return replace(failed, retry_after=error_body.retry_after(error.response.headers))

    def of_rejected(self, base_url: str, id: str, rejected: Rejected, answered: bool) -> FailedTry:
        """An error inside HTTP 200; what it worked for before is likely to be charged."""
        told = (rejected.status, rejected.error, rejected.says)
        failed = self._failed(base_url, id, told, answered, "error {} inside HTTP 200")
        return replace(failed, charged=None if rejected.worked else failed.charged)

    def of_unreadable(self, id: str, error: UnreadableError | OversizedError) -> FailedTry:
        """A body in which nothing can be read; only where it was cut off may another try give more."""
        kind = error.kind if isinstance(error, UnreadableError) else "foreign"
        about: About = "unclear" if kind == "cut" else "unreadable" if kind == "garbled" else "request"
        return FailedTry(id, about, self.clean(str(error)), charged=None, status=200)

    def _failed(self, base_url: str, id: str, told: tuple[int, object, str], answered: bool, called: str) -> FailedTry:
        status, body, says = told[0], told[1], self.clean(told[2])
        called = called.format(status)
        about = self._about(status, body, says, answered)
        why = f"{called}: {says}" if says else called
        if about == "setup":
            why = self._not_found(base_url, says, called) if status == 404 else self._key_refused(base_url, called)
        return FailedTry(id, about, why, charged=None if status in UNKNOWN_STATUS else False, status=status)

    def of_connection(self, base_url: str, id: str, error: openai.APIConnectionError, reached: bool) -> FailedTry:
        """A connection that was not made or broke, to a server that was `reached` before or not."""
        cause = error.__cause__
        # By name: the SDK's transport library is its own affair and has changed before.
        kind = type(cause).__name__
        detail = self.clean(str(cause)) or kind
        if kind not in UNSENT:
            return FailedTry(id, "unclear", f"connection broken ({detail})", charged=None)
        if kind != "ConnectTimeout" and not reached:
            why = f"{base_url}: cannot connect ({detail}); is the server running, and is the URL right?"
            return FailedTry(id, "absent", why)
        return FailedTry(id, "gone", f"cannot connect ({detail})")

    def of_timeout(self, id: str) -> FailedTry:
        """No whole answer in time."""
        return FailedTry(id, "unclear", f"no answer within {self.timeout:g} s", charged=None, hung=True)

    def clean(self, text: str) -> str:
        """One short line, without the key even where a server repeats it."""
        return error_body.one_line(self._keyless(text))

    def body(self, content: bytes, content_type: str = "") -> Body:
        """What came, as it is kept; where it holds a secret key, without it."""
        if self.key is None or len(self.key) < SECRET:
            return Body(content, content_type)
        return without_key(Body(content, content_type), self.key, f"[{self.api_key_env}]")

    def _keyless(self, text: str) -> str:
        if not self.key:
            return text
        key = re.escape(self.key)
        # What stands for a key where none is required ("none", "x", "1") is part of many words.
        key = key if len(self.key) >= SECRET else rf"(?<![^\W_]){key}(?![^\W_])"
        return re.sub(key, lambda _: f"[{self.api_key_env}]", text)

    @staticmethod
    def _about(status: int, body: object, says: str, answered: bool) -> About:
        if error_body.out_of_money(status, body, says):
            return "money"
        if status in (401, 404) or (status == 403 and not answered):
            return "setup"
        if status in BUSY_STATUS:
            return "request" if error_body.never_fits(status, says) else "busy"
        return "unclear" if status in RETRIED_STATUS or status >= 500 else "request"

    def _key_refused(self, base_url: str, called: str) -> str:
        if self.api_key_env is None:
            return (
                f"{base_url} requires a key ({called}); put it into an environment variable and name that "
                "variable as api_key_env"
            )
        return (
            f"{base_url} refuses the key in the environment variable {self.api_key_env} ({called}) for "
            f"model {self.model!r}; set it to a key that is valid there"
        )

    def _not_found(self, base_url: str, says: str, called: str) -> str:
        if self.model not in says and not re.search(r"/v\d", urlsplit(base_url).path):
            return (
                f"{base_url}/chat/completions does not exist ({called}); the path of such a URL usually ends in "
                f"/v1: try {base_url}/v1"
            )
        detail = f": {says}" if says else ""
        return f"{base_url} has no model {self.model!r} ({called}{detail})"


Outcome = Reply | FailedTry
"""How a request ended: a failure here is one that is not tried again."""


@dataclass
class Triage:
    """Decides what failed requests mean, from what came before and after them.

    When a request fails, it may be to blame itself (a prompt that crashes the server), or the endpoint may be.
    Such failures are held back until another request is answered; only then do they become error replies, which may
    pass. If nothing more is answered they do not, and a resumed run sends them again. A request that is refused gets
    an error reply at once where the endpoint is known to work: `answered`, by this process or an earlier one.

    `doubtful` are requests that failed in an earlier run: that they fail again says nothing about the endpoint.
    """

    answered: bool
    doubtful: frozenset[str] = frozenset()
    held: list[FailedTry] = field(default_factory=list[FailedTry])

    def sort(self, outcomes: Sequence[Outcome]) -> list[Reply]:
        """The replies that can be committed now."""
        replies: list[Reply] = []
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                self.answered = True
                replies += [*self.release(), outcome]
            elif outcome.about == "request" and self.answered:
                replies.append(_error_reply(outcome))
            else:
                self.held.append(outcome)
        return replies

    @property
    def hopeless(self) -> bool:
        """Whether so many requests failed in a row that the endpoint is to blame."""
        return sum(failure.id not in self.doubtful for failure in self.held) >= PATIENCE

    def in_vain(self, failing: Sequence[FailedTry]) -> list[Reply]:
        """At the end of a run in which no server answers any more: what is to be recorded as tried."""
        tried = {failure.id: failure for failure in [*failing, *self.held] if failure.id not in self.doubtful}
        return [replace(_error_reply(failure), passing=True) for failure in tried.values()]

    def release(self) -> list[Reply]:
        """What is held, as error replies."""
        held, self.held = self.held, []
        return [_error_reply(failure) for failure in held]


def no_server_left(base_url: str, of: int, failures: Sequence[FailedTry], answered: bool) -> Exception:
    """What ends a run when all `of` servers are out, `base_url` the last of them; `answered` if any ever replied."""
    last = failures[-1]
    where = base_url if of == 1 else f"{base_url}, the last of {of} URLs,"
    if limits := [failure for failure in failures if failure.until is not None]:
        return limited_until(where, min(limits, key=lambda failure: failure.until or 0.0))
    if any(failure.about == "money" for failure in failures):
        return no_money(base_url, next(failure for failure in failures if failure.about == "money"))
    if all(failure.about in ("absent", "setup") for failure in failures):
        can = "reached" if all(failure.about == "absent" for failure in failures) else "used"
        return UserError(last.why if of == 1 else f"none of {of} URLs can be {can}; the last: {last.why}")
    return dead(where, last.why, answered)


def limited_until(where: str, failure: FailedTry) -> StoppedEarly:
    """What ends a run where a server asks for a longer wait than a run makes: mostly a daily limit."""
    at = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(failure.until))
    return StoppedEarly(f"{where} takes no more requests until {at} ({failure.why}); {RESUMES} from then on")


def dead(where: str, why: str, answered: bool) -> Exception:
    """What ends a run in which no server answers any more, or none ever did."""
    if answered:
        return StoppedEarly(f"{where} stopped answering: {why}; {RESUMES}")
    return RunFailed(f"{where} answered no request; the last failure: {why}")


def no_money(base_url: str, failure: FailedTry) -> StoppedEarly:
    """What ends a run when the account is empty."""
    return StoppedEarly(f"the account at {base_url} is out of credit ({failure.why}); top it up; {RESUMES} from here")


def _error_reply(failure: FailedTry) -> Reply:
    return Reply(failure.id, "", "error", error=failure.why, passing=failure.passing)
