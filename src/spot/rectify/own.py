"""The user's own Oracle by name: found, checked, and wrapped so that its failures are one line."""

import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from spot.errors import RunFailed, UserError
from spot.models.base import Model, closed
from spot.plugin import call, load_registered, own_code
from spot.rectify.base import Correction, Failure
from spot.schema import Mode, Problem

SEE = "see docs/extending.md"


@dataclass(frozen=True)
class Setting:
    """What a function that makes an Oracle is told of its run if it has a parameter `setting`.

    `prompted` says that only a model, which is then asked in `mode`, serves the run's settings (`rectify.mode`,
    `candidates` or `target_pairs`); `problem_options` are `problems.options`.
    """

    problems: Sequence[Problem]
    mode: Mode
    prompted: bool
    problem_options: Mapping[str, Any]


def load_oracle(
    spec: str, options: Mapping[str, Any] | None = None, setting: Setting | None = None
) -> "OwnOracle | Model":
    """The Oracle that the `module:function` `spec` makes, or a registered one, called with `options`.

    It may return a model instead (`generate`, see `spot.models.base`), which is then prompted for corrections. The
    working directory is searched too. Raises `UserError` where the name leads to nothing or not to an Oracle
    (`name`, `mode` and `correct`, see `spot.rectify.base`), `RunFailed` where the function raises. The Oracle's own
    errors become `RunFailed`s that name `spec`, the file and the line.
    """
    arguments = dict(options or {})
    if "setting" in inspect.signature(load_registered("oracle", spec)).parameters:
        arguments["setting"] = setting
    oracle: Any = call("oracle", spec, **arguments)
    if hasattr(oracle, "generate"):
        return oracle
    for attribute in ("name", "mode", "correct"):
        if not hasattr(oracle, attribute):
            raise UserError(f"oracle {spec!r}: the function did not return an Oracle, which has a {attribute!r}; {SEE}")
    if oracle.mode not in get_args(Mode):
        raise UserError(f"oracle {spec!r}: its mode is {oracle.mode!r}; it must be one of {', '.join(get_args(Mode))}")
    return OwnOracle(spec, oracle, dict(options or {}))


class OwnOracle:
    """The user's Oracle; implements `spot.rectify.base.Oracle`."""

    def __init__(self, spec: str, oracle: Any, options: Mapping[str, Any]) -> None:
        self.options = options
        self.name: str = oracle.name
        self.mode: Mode = oracle.mode
        self._spec = spec
        self._oracle = oracle

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """The Oracle's groups as they come. Raises `RunFailed` where it raises or yields something else."""
        with own_code("oracle", self._spec):
            groups = self._oracle.correct(failures)
            if not hasattr(groups, "__aiter__"):
                if inspect.iscoroutine(groups):
                    groups.close()  # else Python complains that it was never awaited
                what = f"correct returned {type(groups).__name__}"
                raise RunFailed(f"oracle {self._spec!r}: {what}; make it `async def` with `yield` ({SEE})")
            async with closed(groups):
                async for group in groups:
                    yield self._checked(group)

    def _checked(self, group: Any) -> list[Correction]:
        if not isinstance(group, list | tuple) or not all(isinstance(one, Correction) for one in group):
            what = f"correct yielded {type(group).__name__}"
            raise RunFailed(f"oracle {self._spec!r}: {what}, not a list of corrections; {SEE}")
        corrections: list[Correction] = list(group)
        for one in corrections:
            text: Any = one.text
            if not isinstance(text, str | None):
                what = f"the text of its correction of {one.attempt_id!r} is {type(text).__name__}"
                raise RunFailed(f"oracle {self._spec!r}: {what}, not text; {SEE}")
            if text is not None and not text.isascii() and not _is_unicode(text):
                what = f"the text of its correction of {one.attempt_id!r} holds half a surrogate pair"
                raise RunFailed(f"oracle {self._spec!r}: {what}, which no file can hold")
        return corrections


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
