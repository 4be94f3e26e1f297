"""The configuration of a run: one frozen section a stage, every key read, unknown keys refused.

A config is a YAML file; `section.key=value` on the command line overrides it. The resolved config is saved with the
run and decides whether a run directory can be resumed.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from spot.errors import UserError
from spot.files.settings import read_yaml
from spot.schema import Sampling

Stage = Literal["elicit", "rectify", "filter", "train", "evaluate", "report"]
STAGES: tuple[Stage, ...] = ("elicit", "rectify", "filter", "train", "evaluate", "report")


# What may differ when a run is resumed: where it is, what it does next, how it is shown, how fast it asks.
NOT_IDENTITY = frozenset(
    {
        "run.dir",
        "run.name",
        "run.stages",
        "run.on_bad_row",
        "report",
        "judge",
        "student.device",
        *("train.eval_every", "train.eval_tasks"),  # change nothing of what is trained
        *(
            f"{section}.{key}"
            for section in ("student", "rectify")
            for key in (
                *("concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "extra_headers"),
                *("input_price", "output_price", "max_cost"),
            )
        ),
        *("rectify.batch", "rectify.give_up"),
    }
)


def _url_without_secrets(url: str | None) -> str | None:
    if url is not None and ("@" in urlsplit(url).netloc or urlsplit(url).query):
        raise ValueError("keep user names, passwords and keys out of the URL; name the key's variable in api_key_env")
    return url


def _variable_name(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("name the environment variable that holds the key, not the key itself")
    return name


def _urls_without_secrets(urls: str | list[str] | None) -> str | list[str] | None:
    for url in [urls] if isinstance(urls, str) else urls or []:
        _url_without_secrets(url)
    return urls


# Checked here, before the config is saved or shown anywhere; what they hold is never echoed.
Urls = Annotated[str | list[str] | None, AfterValidator(_urls_without_secrets)]
KeyVariable = Annotated[str | None, AfterValidator(_variable_name)]
SECRETIVE = ("base_url", "api_key_env")


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where the run lives and what it does. `seed` decides sampling, order and the lab's questions."""

    dir: Path = Path("runs/run")
    name: str = "run"
    seed: int = Field(default=0, ge=0)
    stages: list[Stage] = list(STAGES)
    on_bad_row: Literal["error", "skip"] = "error"


class EndpointSettings(Section):
    """An OpenAI-compatible server, or several that share the work (`base_url` is then a list).

    `concurrency` is the most requests in flight; it is found out how many the server takes. Prices are dollars per
    million tokens. With `max_cost`, in dollars, no request is sent whose worst case would bring the run's ledger above
    it. `extra_body` is merged into every request, `extra_headers` are sent with it (OpenAI-Organization, say: nothing
    is taken from the SDK's own variables), `omit` names settings that a server refuses, `tokens_field` is what it calls
    the limit of a reply (OpenAI's reasoning models: `max_completion_tokens`, and omit temperature and top_p).
    """

    base_url: Urls = None
    api_key_env: KeyVariable = None
    concurrency: int = Field(default=16, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    timeout: float = Field(default=600.0, gt=0, le=3000)
    extra_body: dict[str, Any] = {}
    extra_headers: dict[str, str] = {}
    omit: list[Literal["temperature", "top_p", "seed"]] = []
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    input_price: float = Field(default=0.0, ge=0)
    output_price: float = Field(default=0.0, ge=0)
    max_cost: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _prices_for_a_limit(self) -> "EndpointSettings":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost needs input_price and output_price, in dollars per million tokens")
        return self


class StudentSection(EndpointSettings):
    """The model to improve. `model` is a directory, a hub name or `lab` (the bundled student).

    With `base_url` its answers come from an OpenAI-compatible server, where it is called `served_as`; the weights
    that are trained are still `model`. A server decides by itself whether its model thinks: give it, for example, the
    `extra_body` `{chat_template_kwargs: {enable_thinking: false}}`.
    """

    model: str = "lab"
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = Field(default=256, ge=1)
    enable_thinking: bool = False
    served_as: str | None = None


class ProblemsSection(Section):
    """The questions: a file of problems, or `lab` for `count` questions of the lab's world. `count` cuts a file.

    `options` are the lab's own: `world`.
    """

    source: str = "lab"
    count: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = {}
    verifier: str = "math"
    answer_pattern: str | None = None


class DrawnSection(Section):
    """How answers are drawn (method.md: temperature 0.7, top-p 0.8, at most 32,768 new tokens)."""

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.8, gt=0, le=1)
    max_new_tokens: int = Field(default=32768, ge=1)

    def sampling(self, seed: int) -> Sampling:
        """These settings with the run's seed."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, seed=seed)


class SamplingSection(DrawnSection):
    """How the student is asked, and how often each problem is."""

    samples: int = Field(default=1, ge=1)


class ElicitSection(SamplingSection):
    """Asking the student. `attempts` names a file of answers that were given elsewhere; then nothing is asked."""

    attempts: Path | None = None


class RectifySection(EndpointSettings):
    """The Oracle: `model` (an endpoint), `self` (the student), `human`, `scripted` (the lab's), `import` (a file of
    corrections) or the user's `module:function`. `oracle_options` are the arguments of the last, and of the lab's.

    `mode` says how a model corrects: `rewrite` (the whole answer), `patch` (edits of it) or `continue` (the first wrong
    step; the student continues from there, at most `max_rounds` times). Of `candidates` corrections the nearest is
    kept. With `target_pairs` no more is asked than that many pairs within `filter.gamma` need, and where the wrong
    attempts do not suffice the student is asked again, up to `max_samples` times a problem.
    """

    oracle: str = "model"
    model: str | None = None
    path: Path | None = None
    oracle_options: dict[str, Any] = {}
    mode: Literal["rewrite", "patch", "continue"] = "rewrite"
    batch: bool = False  # by the provider's batch interface: half the price (give that one), within a day
    give_up: list[str] = []  # batches whose requests are asked again though nobody knows what became of them
    candidates: int = Field(default=1, ge=1)
    target_pairs: int | None = Field(default=None, ge=1)
    max_samples: int = Field(default=8, ge=1)
    max_rounds: int = Field(default=4, ge=1)
    with_answer: bool = True
    prompt: str | None = None
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=32768, ge=1)


class FilterSection(Section):
    """Which corrections become pairs."""

    gamma: float = Field(default=0.6, ge=0, le=1)
    max_pairs: int | None = Field(default=None, ge=1)


class TrainSection(Section):
    """Training, with the paper's values as defaults (method.md, Training facts)."""

    objective: str | list[str] = "spot_bco"  # by name, or module:function; several are summed
    loss_weights: list[float] | None = None
    beta: float = Field(default=0.1, gt=0)
    reward_shift: Literal["ema", "cumulative", "none"] = "ema"
    shift_decay: float = Field(default=0.9, ge=0, lt=1)
    sft_reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    kl_coefficient: float = Field(default=0.1, ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    score_rejected: bool = True
    learning_rate: float = Field(default=1e-6, gt=0)
    num_train_epochs: int = Field(default=2, ge=1)
    pairs_per_step: int = Field(default=32, ge=1)
    max_length: int = Field(default=8192, ge=2)
    overlength: Literal["drop", "error"] = "drop"
    micro_batch_tokens: int = Field(default=16384, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    save_steps: float = Field(default=0.25, gt=0)
    lora_r: int | None = Field(default=None, ge=1)  # an adapter of this rank is trained, not the whole model
    lora_alpha: int = Field(default=32, ge=1)
    lora_target_modules: list[str] = ["all-linear"]
    drop_overlap: bool = False  # leave out pairs that hold a question of `evaluate.tasks`
    eval_every: int | None = Field(default=None, ge=1)  # tasks are asked every so many steps, too
    eval_tasks: list[str] = []  # those tasks; by default the ones of `evaluate`
    load_best_model_at_end: bool = False  # end with the step that is best by `metric_for_best_model`, one of eval_tasks
    metric_for_best_model: str | None = None

    @property
    def objectives(self) -> list[str]:
        """The objectives as a list."""
        return [self.objective] if isinstance(self.objective, str) else self.objective


class EvaluateSection(DrawnSection):
    """Measuring before and after. `tasks` are benchmarks (`paper`: its nine), the lab's families, files of problems, or
    `module:function`; empty means nothing.

    Each question is asked `samples` times, by default as often as its task says. `data_dir` has the benchmarks' files
    in place of the hub's, `prompts` is a YAML file of templates by task. `questions` cuts every task.
    """

    tasks: list[str] = []
    samples: int | None = Field(default=None, ge=1)
    questions: int | None = Field(default=None, ge=1)
    data_dir: Path | None = None
    prompts: Path | None = None
    seed: int = Field(default=1, ge=0)


class JudgeSection(EndpointSettings):
    """The model that `spot audit` asks which steps are wrong; none without `model`, its name at `base_url`.

    `prompt` is a path to the user's own (docs/audit.md).
    """

    model: str | None = None
    prompt: str | None = None
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=16384, ge=1)


class ReportSection(Section):
    """The report. `notes` are printed in it: what a reader must know about this run."""

    notes: list[str] = []


class RunConfig(Section):
    """A whole run."""

    run: RunSection = RunSection()
    student: StudentSection = StudentSection()
    problems: ProblemsSection = ProblemsSection()
    elicit: ElicitSection = ElicitSection()
    rectify: RectifySection = RectifySection()
    filter: FilterSection = FilterSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    judge: JudgeSection = JudgeSection()
    report: ReportSection = ReportSection()

    def to_yaml(self) -> str:
        """The resolved config. It names environment variables, never what they hold."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config and apply `section.key=value` overrides; raises `UserError` naming the key and the fix.

    Relative paths in the file are relative to the working directory, as on the command line.
    """
    raw = read_yaml(path)
    if raw is None or raw == {}:
        raise UserError(f"{path}: empty config; start from one of those in configs/")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of sections ({', '.join(RunConfig.model_fields)})")
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, str(path))


# Where a setting is now that an earlier version kept elsewhere in its section, and what it was unless it was set.
_MOVED = {
    "rectify": ("oracle_options", {"wrong_rate": 0.0, "ambiguous_rate": 0.0, "misfit_rate": 0.0}),
    "problems": ("options", {"world": "default"}),
}


def _with_moved_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """A raw config of an earlier version with its settings where they are now."""
    moved = dict(raw)
    for name, (place, defaults) in _MOVED.items():
        section = raw.get(name)
        if isinstance(section, dict) and not defaults.keys().isdisjoint(section):
            old = {key: value for key, value in section.items() if key in defaults and value != defaults[key]}
            rest = {key: value for key, value in section.items() if key not in defaults}
            moved[name] = {**rest, place: {**old, **(section.get(place) or {})}}
    return moved


def with_new_keys(kept: Any) -> Any:
    """A raw config of an earlier version with the keys that have come since, at their defaults."""
    if not isinstance(kept, dict):
        return kept
    kept = _with_moved_keys(kept)
    defaults = yaml.safe_load(RunConfig().to_yaml())
    return {
        name: {**defaults.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in {**defaults, **kept}.items()
    }


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a raw config."""
    key, separator, value = override.partition("=")
    section, dot, name = key.partition(".")
    if not separator or not dot:
        raise UserError(f"{override}: write an override as section.key=value, for example train.beta=0.1")
    target = raw.setdefault(section, {})
    if not isinstance(target, dict):
        raise UserError(f"{override}: the section {section!r} of the config is not a mapping")
    try:
        target[name] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{override}: the value is not valid YAML; quote it") from None


def parse_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Check a raw config; `origin` is what error messages call it."""
    raw = _with_moved_keys({section: {} if values is None else values for section, values in raw.items()})
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    # A whole section, or what a secretive key holds, is never echoed.
    if first["type"] == "value_error" or any(part in SECRETIVE for part in first["loc"]):
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"] != "extra_forbidden":
        return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]} (got {first['input']!r})"
    parent: Any = RunConfig
    for part in first["loc"][:-1]:
        parent = parent.model_fields[str(part)].annotation
    near = get_close_matches(str(first["loc"][-1]), parent.model_fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(parent.model_fields)}"
    return f"unknown key {place!r}; {hint}"
