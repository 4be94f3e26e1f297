"""The audit's two files: a row a pair in `audit.jsonl`, and `audit.json`, which the report and the terminal show.

Counts are of tokens unless another unit is named, log-likelihoods and divergences are in nats, shares are fractions.
"Before" is what both answers begin with, "from the first edit" what follows: the first token that differs included.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from spot.errors import UserError
from spot.schema import Row

ROWS, SUMMARY = "audit.jsonl", "audit.json"
BINS = 20
"""Of the histograms; each is open below and closed above, as `R <= gamma` is."""


class Part(BaseModel):
    """Base of all parts: immutable, no unknown fields, no coercion, no numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Edits(Part):
    """What a correction changed, over the student's tokens of the two answers alone.

    `change_ratio` is eq. 1: LCS, over the chosen answer; `lcs_distance` the same over the longer answer. `edits` is the
    Levenshtein distance and `edit_distance` that over the longer answer. `first_edit` is the share of the rejected
    answer that stands before the first edit. `length_ratio` is chosen over rejected, `shortened` that it is below 0.7.
    """

    rejected_tokens: int
    chosen_tokens: int
    change_ratio: float
    lcs_distance: float
    edits: int
    edit_distance: float
    shared_prefix: int
    shared_suffix: int
    first_edit: float
    length_ratio: float
    shortened: bool


class Answer(Part):
    """One answer under the student, its end-of-turn token included.

    `logp` is the sum over its `tokens`, `perplexity` is `exp(-logp / tokens)`; the same from the first edit on.
    """

    tokens: int
    logp: float
    perplexity: float
    logp_from_edit: float
    perplexity_from_edit: float


class Divergence(Part):
    """Full-vocabulary KL(trained || student) a token, along the chosen answer; `before` is `None` where none is."""

    mean: float
    before: float | None
    from_edit: float


class Likelihood(Part):
    """Both answers under the student; `shared_tokens` are what they begin with.

    `divergence` is the chosen answer's mean negative log-likelihood a token minus the rejected one's: what the
    correction is further from the student's own text. `kl` needs a trained model.
    """

    shared_tokens: int
    chosen: Answer
    rejected: Answer
    divergence: float
    divergence_from_edit: float
    kl: Divergence | None


class StepChange(Part):
    """One step that both answers were judged on, by its place from 0; `kinds` are what is wrong with it in each."""

    step: int
    rejected_kinds: list[str]
    chosen_kinds: list[str]
    rejected_text: str
    chosen_text: str

    @property
    def outcome(self) -> Literal["kept", "fixed", "new", "left"]:
        """Right in both, fixed, newly wrong, or wrong in both."""
        if not self.chosen_kinds:
            return "fixed" if self.rejected_kinds else "kept"
        return "left" if self.rejected_kinds else "new"


class Style(Part):
    """How the two answers are written: characters, formatting marks by name, and their words.

    `vocabulary` is the share of the chosen answer's different words that the rejected one has too; numbers are no
    words.
    """

    rejected_characters: int
    chosen_characters: int
    rejected_marks: dict[str, int]
    chosen_marks: dict[str, int]
    vocabulary: float


class OverlapRow(Part):
    """A question of the evaluation that this pair's prompt is, or nearly is; `share` of its words."""

    task: str
    problem_id: str
    share: float


class PairAudit(Row):
    """Everything measured on one pair; a part that was not measured is `None`, and `audit.json` says why.

    `steps` of a judge model are those from the first that differs on, summed up or not; `unjudged` says why it judged
    none. `duplicate_of` is the id of an earlier pair with the same words in prompt and both answers.
    """

    id: str
    problem_id: str
    oracle: str
    edits: Edits
    likelihood: Likelihood | None
    steps: list[StepChange] | None
    unjudged: str | None = None
    style: Style
    duplicate_of: str | None
    overlaps: list[OverlapRow] | None


class Spread(Part):
    """How a quantity lies over `n` pairs: its mean, median, and 5% and 95% quantiles."""

    mean: float
    low: float
    median: float
    high: float
    n: int


class EditSummary(Part):
    """`Edits` over all pairs; histograms have `BINS` bins from 0 to 1.

    `earlier_with_ratio` is Spearman's rank correlation of change ratio and first edit (below 0: the more is changed,
    the earlier the first edit falls), `None` where one of them is the same in all pairs.
    """

    change_ratio: Spread
    lcs_distance: Spread
    edit_distance: Spread
    first_edit: Spread
    shared_prefix: Spread
    shared_suffix: Spread
    length_ratio: Spread
    shortened: int
    change_ratio_bins: list[int]
    edit_distance_bins: list[int]
    earlier_with_ratio: float | None


class AnswerSummary(Part):
    """One side of all pairs: perplexity over all tokens, the part before the first edit, the part from it on.

    `mean_perplexity` is the mean of the answers' own perplexities.
    """

    tokens: int
    perplexity: float
    mean_perplexity: float
    perplexity_from_edit: float


class ProfileBin(Part):
    """Means a token at `first` to `last` tokens after the first edit (0 is the edit, before it is negative)."""

    first: int
    last: int
    chosen_tokens: int
    rejected_tokens: int
    chosen_nll: float | None
    rejected_nll: float | None
    chosen_kl: float | None


class LikelihoodSummary(Part):
    """`Likelihood` over the `pairs` that were scored; KL and perplexities are over tokens, whoever's they are."""

    student: str
    trained: str | None
    precision: str
    pairs: int
    chosen: AnswerSummary
    rejected: AnswerSummary
    perplexity_before: float | None
    divergence: Spread
    kl: Divergence | None
    profile: list[ProfileBin]


class NewError(Part):
    """A kind of newly introduced error: how often and in how many pairs, by Oracle, with up to three examples.

    `before` and `after` are the shares of the steps in the evaluation's answers that have an error of this kind, before
    and after training; `None` where no answers were checked.
    """

    kind: str
    count: int
    pairs: int
    examples: list[str]
    before: float | None
    after: float | None


class StepSummary(Part):
    """Steps of the rejected and the chosen answers, by what became of them; `new` ones by kind, most frequent first.

    By the lab's judge all steps; by a judge model those from the first that differs on.
    """

    pairs: int
    kept: int
    fixed: int
    new: int
    left: int
    pairs_with_new: int
    kinds: list[NewError]

    @property
    def new_rate(self) -> float:
        """Newly introduced errors among the steps that were right; 0 where none was."""
        return self.new / max(1, self.kept + self.new)


class Estimate(Part):
    """A share, or a kappa, with its 95% interval."""

    value: float
    low: float
    high: float


class Agreement(Part):
    """A judge model against labels: over `steps` labelled steps of `rows` answers or pairs, `wrong` of them wrong.

    `precision` and `recall` are of wrong steps; `false_alarms` is the share of right steps that it calls wrong;
    `same_kind` is that of the wrong ones it found to which it gives the label's kind. `unjudged` rows got no reply that
    could be read and are in none of these. `differing` names steps.
    """

    labels_hash: str
    rows: int
    steps: int
    wrong: int
    unjudged: int
    accuracy: Estimate
    precision: Estimate | None
    recall: Estimate | None
    false_alarms: Estimate | None
    kappa: Estimate | None
    same_kind: float | None
    differing: list[str]


class JudgeSummary(Part):
    """The judge model of an audit. Another `model`, `prompt_version` or `settings` (a hash of servers and sampling) is
    another judge, to be compared with labels anew. `pairs` were judged; `unjudged` are the others, by reason.
    """

    model: str
    prompt_version: str
    settings: str
    agreement: Agreement | None
    pairs: int
    unjudged: dict[str, int]


class MarkDrift(Part):
    """A formatting mark: how many a thousand characters, and how many pairs have it on one side only."""

    mark: str
    rejected_rate: float
    chosen_rate: float
    only_rejected: int
    only_chosen: int


class WordDrift(Part):
    """A word that more corrections bring in than take out: in how many pairs each."""

    word: str
    brought: int
    taken: int


class StyleSummary(Part):
    """`Style` over all pairs; marks that occur at all, and the words that most corrections bring in."""

    characters_ratio: Spread
    vocabulary: Spread
    marks: list[MarkDrift]
    words: list[WordDrift]


class OverlapSummary(Part):
    """Pairs and questions of the evaluation that overlap; `tasks` holds the questions looked at, by task."""

    tasks: dict[str, int]
    pairs: int
    questions: int


class AuditSummary(Part):
    """All that is shown of an audit. `not_measured` says why a part is `None`, by its name.

    `judge` is `None` where no judge model was asked (the lab's steps need none). `duplicates` are pairs that repeat an
    earlier one, `same_question` those that share a question with an earlier one.
    """

    pairs: int
    pairs_hash: str
    oracles: list[str]
    edits: EditSummary
    likelihood: LikelihoodSummary | None
    steps: StepSummary | None
    judge: JudgeSummary | None = None
    style: StyleSummary
    duplicates: int
    same_question: int
    overlap: OverlapSummary | None
    not_measured: dict[str, str]


def spread(values: Sequence[float]) -> Spread:
    """Mean and quantiles of `values`, which must not be empty."""
    low, median, high = np.quantile(np.asarray(values, dtype=float), (0.05, 0.5, 0.95)).tolist()
    return Spread(mean=float(np.mean(values)), low=low, median=median, high=high, n=len(values))


def pairs_hash(path: Path) -> str:
    """What tells the pairs of an audit from others: 16 hex digits of the hash of `pairs.jsonl`."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_audit(run: Path) -> AuditSummary | None:
    """The audit of a run, `None` where there is none. Raises `UserError` where the file is damaged."""
    path = run / SUMMARY
    if not path.exists():
        return None
    try:
        return AuditSummary.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        where = "" if isinstance(error, OSError) else ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{path}: damaged or of another version ({where or 'not JSON'}); run spot audit again"
        ) from None
