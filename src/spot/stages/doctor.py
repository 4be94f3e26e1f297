"""`spot doctor`: what this machine can do, and what to fix. Loads torch at most, never a model; shows no key."""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from spot.errors import RunFailed, UserError

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30
OPTIONAL = {
    "pyarrow": "reads and writes Parquet; pip install 'spot-posttraining[parquet]'",
}


# Keys of a config that name files to be read.
FILE_KEYS = ("problems.source", "elicit.attempts", "rectify.path")


@dataclass(frozen=True)
class Check:
    """One finding: `found` says what is there, `fix` what to do about it (empty where nothing is to be done)."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def checks(
    config: Mapping[str, Any] | None = None,
    preflight: Iterable[tuple[str, Callable[[], object]]] = (),
    timeout: float = 5.0,
) -> list[Check]:
    """All findings, those of the model, files and endpoints that `config` (a run's sections by name) uses included.

    `preflight` is what a run of it tries before it starts (`pipeline.preflight`). Each endpoint is asked for its list
    of models, for `timeout` seconds at most; nothing that costs is sent.
    """
    found = [
        _python(),
        _package("torch", (2, 11)),
        _device(),
        _package("transformers", (5, 17)),
        _memory(),
        _disk(Path.cwd()),
        *_student(config or {}),
        *_files(config or {}),
        *_endpoints(config or {}, timeout),
    ]
    told = {text for check in found if check.status == "fail" for text in (check.name, check.found)}
    refusals = [check for check in _refusals(preflight) if not told & {check.name, check.found}]
    return [*found, *refusals, *_optional()]


def print_checks(console: "Console", found: list[Check]) -> None:
    """Show `found` as a table, with what to fix under it."""
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in found:
        table.add_row(Text(check.status, style[check.status]), check.name, check.found)
        if check.fix:
            table.add_row("", "", Text(f"-> {check.fix}", style="dim"))
    console.print(table)


def _python() -> Check:
    return Check("Python", "ok", ".".join(map(str, sys.version_info[:3])))


def _package(name: str, least: tuple[int, int]) -> Check:
    wanted = ".".join(map(str, least))
    fix = f"pip install '{name}>={wanted}'"
    version = _version(name)
    if version is None:
        return Check(name, "fail", "not installed", fix)
    if _numbers(version) < least:
        return Check(name, "fail", f"{version}, older than {wanted}", fix)
    return Check(name, "ok", version)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _device() -> Check:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("device", "fail", f"unknown, torch does not load ({_first_line(error)})", "install torch again")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Check("device", "ok", ", ".join(f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB" for gpu in devices))
    if torch.backends.mps.is_available():
        return Check("device", "ok", "Apple GPU (MPS)")
    found = f"CPU, {threads} threads"
    return Check(
        "device", "ok", f"{found}; enough for the demo, slow for models above a few hundred million parameters"
    )


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's share, where this is one
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    found = f"{total / GIB:.1f} GiB"
    return Check("memory", "ok", found) if total >= 2 * GIB else Check("memory", "warn", found, "the demo takes 2 GiB")


def _disk(here: Path) -> Check:
    free = shutil.disk_usage(here).free
    found = f"{free / GIB:.1f} GiB free here"
    if free >= GIB:
        return Check("disk", "ok", found)
    return Check("disk", "warn", found, "a run of the demo takes 200 MiB, a run of a real model twice the model's size")


def _student(config: Mapping[str, Any]) -> Iterator[Check]:
    model = config.get("student", {}).get("model")
    if model in (None, "lab"):
        return
    if Path(model).is_dir():
        yield Check("student", "ok", f"{model} is a directory")
        return
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        fix = "name a directory that is there, or a model of the hub (owner/name)"
        yield Check("student", "fail", f"{model} is no directory and no hub name", fix)
        return
    found = "is in the hub's cache" if cached else "is not here; it is fetched from the hub when the run starts"
    fix = "" if cached else f"without a network there: hf download {model}"
    yield Check("student", "ok" if cached else "warn", f"{model} {found}", fix)


def _files(config: Mapping[str, Any]) -> Iterator[Check]:
    """The files that a run reads: problems, imported answers and corrections, tasks."""
    named = {key: config.get(key.split(".")[0], {}).get(key.split(".")[1]) for key in FILE_KEYS}
    tasks: list[str] = config.get("evaluate", {}).get("tasks") or []
    named |= {f"evaluate.tasks[{i}]": task for i, task in enumerate(tasks) if Path(task).suffix}
    for key, path in named.items():
        if path in (None, "lab"):
            continue
        if Path(path).exists():
            yield Check(key, "ok", str(path))
        else:
            yield Check(key, "fail", f"{path}: no such file", f"write it, or set {key}=FILE")
    if "evaluate" in config and not tasks:
        yield Check(
            "evaluate.tasks", "warn", "none, so the run will measure nothing", "set 'evaluate.tasks=[heldout.jsonl]'"
        )


def _endpoints(config: Mapping[str, Any], timeout: float) -> Iterator[Check]:
    seen: set[tuple[str, str | None]] = set()
    for section, values in config.items():
        if not isinstance(values, Mapping):
            continue
        fields = cast(Mapping[str, Any], values)
        urls, key_env = fields.get("base_url"), fields.get("api_key_env")
        for url in [urls] if isinstance(urls, str) else urls or []:
            if (url, key_env) not in seen:
                seen.add((url, key_env))
                yield _endpoint(f"{section} endpoint", str(url), key_env, timeout)


def _endpoint(name: str, base_url: str, key_env: str | None, timeout: float) -> Check:
    import openai

    from spot.models.endpoint.model import checked_base_url, read_key

    try:
        url, key = checked_base_url(base_url), read_key(key_env)
    except UserError as error:
        return Check(name, "fail", str(error), "fix the config or the environment")
    key_note = f", key from {key_env}" if key_env else ", no key"
    try:
        with openai.OpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=timeout) as client:
            client.models.with_raw_response.list()
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            fix = f"set {key_env} to a valid key" if key_env else "name the key's environment variable as api_key_env"
            return Check(name, "fail", f"{url} refuses (HTTP {error.status_code}{key_note})", fix)
        # Not every server lists its models; any answer says that it is there.
        return Check(name, "ok", f"{url} answers{key_note} (its model list: HTTP {error.status_code})")
    except openai.APIConnectionError:
        return Check(name, "fail", f"{url} does not answer", "is the server running, and is the URL right?")
    return Check(name, "ok", f"{url} answers{key_note}")


def _refusals(preflight: Iterable[tuple[str, Callable[[], object]]]) -> Iterator[Check]:
    """What `spot run` would stop over at once; its own words name the place and the fix."""
    for name, step in preflight:
        try:
            step()
        except (UserError, RunFailed) as error:
            yield Check(name, "fail", str(error), "fix this first; spot run stops here")


def _optional() -> Iterator[Check]:
    for name, use in OPTIONAL.items():
        version = _version(name)
        yield Check(name, "ok", version) if version else Check(name, "warn", "not installed (optional)", use)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
