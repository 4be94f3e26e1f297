"""The reference: the starting model's log-probabilities, computed once by the same code path and kept in a file.

The file is keyed by the weights, the tokens and the precision that it was computed with. A new run reuses it where the
key is the same. A resumed run reads it or fails: by then the weights at hand are the trained ones, and a reference made
from them would silently be another objective.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from spot.errors import RunFailed, UserError
from spot.files.disk import write_atomic
from spot.train.logps import Scorer
from spot.train.packing import shortest
from spot.train.ranks import Ranks
from spot.train.row import Side
from spot.train.tokenize import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NOT_COMPUTED = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
"""Entries of a model's config that no log-probability depends on."""


SCORING = 3
"""Raised with each change that moves log-probabilities: 2 is the head that takes a target out of its tile, 3 are
exchanged layers."""


@dataclass(frozen=True)
class Reference:
    """The reference's token log-probabilities in nats, fp32, in the order of the pairs.

    The `_token_logps` are flat, all answers one after the other; the `_lengths`, `(num_pairs,)` int64, cut them.
    """

    key: str
    chosen_token_logps: Tensor
    rejected_token_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @cached_property
    def _answers(self) -> dict[Side, tuple[Tensor, ...]]:
        return {
            "chosen": self.chosen_token_logps.split(self.chosen_lengths.tolist()),
            "rejected": self.rejected_token_logps.split(self.rejected_lengths.tolist()),
        }

    def nats(self, count: int) -> Tensor:
        """Minus the log-probability of the first `count` pairs' chosen answers, summed over tokens, `(count,)` fp64."""
        return torch.stack([-answer.sum(dtype=torch.float64) for answer in self._answers["chosen"][:count]])

    def padded(self, side: Side, indices: Sequence[int], width: int) -> Tensor:
        """The answers of `side` of the pairs `indices`, `(len(indices), width)`, 0 on padding."""
        rows = torch.zeros(len(indices), width)
        for row, index in zip(rows, indices, strict=True):
            answer = self._answers[side][index]
            row[: len(answer)] = answer
        return rows


def reference_key(student: str, pairs: Sequence[TokenizedPair], precision: str) -> str:
    """What a reference depends on, as text: `student_hash`, the pairs' tokens, the precision, and this code."""
    return f"student:{student} tokens:{tokens_hash(pairs)} precision:{precision} scoring:{SCORING}"


def student_hash(model: "PreTrainedModel") -> str:
    """A hash of all weights of `model` and of what its config says about computing with them."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_COMPUTED}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokens_hash(pairs: Sequence[TokenizedPair]) -> str:
    """A hash of all pairs' token ids, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little") + array("i", ids).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def compute_reference(
    scorer: Scorer,
    pairs: Sequence[TokenizedPair],
    key: str,
    steps: Iterable[Sequence[int]],
    *,
    micro_batch_tokens: int,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Reference:
    """Score every pair under the scorer's model as it is now, each rank its share, on the CPU afterwards.

    `steps` are the steps of the first epoch, every index once: rows are packed as they will be in training, so that the
    first step's rewards are exactly 0. `progress` is called after each step with how many pairs are done, and with all.
    """
    ranks = ranks or Ranks()
    lengths = torch.tensor([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs]).T.contiguous()
    flat = [torch.zeros(int(side.sum())) for side in lengths]
    answers = [values.split(side.tolist()) for values, side in zip(flat, lengths, strict=True)]
    sides = pairs[0].sides
    done = 0
    for step in steps:
        step_pairs = [pairs[index] for index in step]
        for row in scorer.plan(step_pairs, [sides], micro_batch_tokens, ranks.count)[ranks.rank]:
            indices = [step[position] for position in row or [shortest(step_pairs)]]
            token_logps, mask = (tensor.cpu() for tensor in scorer([pairs[index] for index in indices], sides))
            for side, number in enumerate(range(0, len(sides) * len(indices), len(indices)) if row else ()):
                for place, index in enumerate(indices, start=number):
                    answers[side][index].copy_(token_logps[place][mask[place]])
        done += len(step)
        progress(done, len(pairs))
    chosen, rejected = (ranks.gather(values) for values in flat)
    return Reference(key, chosen, rejected, *lengths)


def starting_reference(
    path: Path, *, shared_file: bool, key: str, compute: Callable[[], Reference], ranks: Ranks, day: date | None = None
) -> Reference:
    """The reference in `path` where it is of `key`, else a computed one, which is then kept there with `day`.

    Raises `UserError`, on all ranks where on one, where `path` is a `shared_file`, one that others may need, and of
    another key, or no reference at all.
    """
    kept = read_reference(path)
    refused = None
    if shared_file and kept is None and path.exists():
        refused = f"{path}: exists and is not a file of reference log-probabilities; give another reference_path"
    elif shared_file and kept is not None and kept.key != key:
        refused = f"{path}: made from other {_other_parts(kept.key, key)} than this run; give another reference_path"
    own = UserError(refused) if refused else None
    _raise_together(own, UserError(f"{path}: another process cannot use it"), ranks)
    has_it = torch.tensor(float(kept is not None and kept.key == key))
    # All ranks or none: with one reading and one computing, they would wait for each other for ever.
    if ranks.gather(has_it) == ranks.count and kept is not None:
        return kept
    reference = compute()
    if ranks.rank == 0:
        save_reference(path, reference, day)
    return reference


def _raise_together(own: Exception | None, others: Exception, ranks: Ranks) -> None:
    """Raise `own` where there is one, and `others` where another rank has one: else this one would wait for it."""
    failed = ranks.gather(torch.tensor(float(own is not None)))
    if own is not None:
        raise own
    if failed:
        raise others


def save_reference(path: Path, reference: Reference, day: date | None = None) -> None:
    """Write `reference` atomically as safetensors, its key in the metadata, and the day that its prompts print."""
    names = ("chosen_token_logps", "rejected_token_logps", "chosen_lengths", "rejected_lengths")
    tensors: dict[str, Tensor] = {name: getattr(reference, name) for name in names}
    write_atomic(path, to_safetensors(tensors, {"key": reference.key} | ({"day": day.isoformat()} if day else {})))


def load_reference(path: Path, key: str, ranks: Ranks | None = None) -> Reference:
    """Read the reference of a run that is being resumed.

    Raises `RunFailed`, on all ranks where on one, where the file is missing, damaged, or of another model, data or
    precision.
    """
    reference = read_reference(path)
    refused = None
    if not path.is_file():
        refused = "the reference log-probabilities of this run are missing"
    elif reference is None:
        refused = "not a whole file of reference log-probabilities"
    elif reference.key != key:
        refused = f"made from other {_other_parts(reference.key, key)} than this run"
    fix = "put the file back, or start over in an empty directory"
    own = RunFailed(f"{path}: {refused}; {fix}") if refused else None
    _raise_together(own, RunFailed(f"{path}: another process cannot use it"), ranks or Ranks())
    assert reference is not None
    return reference


def _other_parts(key: str, ours: str) -> str:
    return ", ".join(part.partition(":")[0] for part in ours.split() if part not in key.split())


def reference_day(path: Path) -> str | None:
    """The day that the prompts of the reference in `path` print; `None` where they print none, or there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("day")
    except (OSError, SafetensorError):
        return None


def read_reference(path: Path) -> Reference | None:
    """The reference in `path`, whatever its key; `None` where there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            key = file.metadata()["key"]  # first: a model's weights, named by mistake, have none and are large
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Reference(key=key, **tensors)
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
