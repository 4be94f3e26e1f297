"""The reference: the starting model's log-probabilities, computed once by the same code path and kept in a file.

The file is keyed by the weights, the tokens and the precision that it was computed with. A new run reuses it where the
key is the same. A resumed run reads it or fails: by then the weights at hand are the trained ones, and a reference made
from them would silently be another objective.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from spot.errors import RunFailed
from spot.store import write_atomic
from spot.train.logps import pair_logps
from spot.train.packing import micro_batches
from spot.train.tokenize import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED_TOGETHER = 256
"""Pairs that are sorted by length together; bounded so that packing stays linear in the number of pairs."""


@dataclass(frozen=True)
class Reference:
    """The reference's log-probabilities in nats, fp32, in the order of the pairs.

    `chosen_logps` and `rejected_logps` are `(num_pairs,)` sums over the answers; the `_token_logps` are flat, all
    answers one after the other.
    """

    key: str
    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_token_logps: Tensor
    rejected_token_logps: Tensor


def reference_key(model: "PreTrainedModel", pairs: Sequence[TokenizedPair], precision: str) -> str:
    """What a reference depends on, as text: hashes of the model's weights and the pairs' tokens, and the precision."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"weights:{weights.hexdigest()} tokens:{tokens_hash(pairs)} precision:{precision}"


def tokens_hash(pairs: Sequence[TokenizedPair]) -> str:
    """A hash of all pairs' token ids, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps([pair.prompt_ids, pair.chosen_ids, pair.rejected_ids]).encode())
    return digest.hexdigest()


@torch.no_grad()
def compute_reference(
    model: "PreTrainedModel", pairs: Sequence[TokenizedPair], key: str, *, micro_batch_tokens: int, bf16: bool
) -> Reference:
    """Score every pair under `model` as it is now, on the CPU afterwards."""
    chosen: list[Tensor] = [torch.empty(0)] * len(pairs)
    rejected: list[Tensor] = [torch.empty(0)] * len(pairs)
    sums = torch.zeros(2, len(pairs))
    for start in range(0, len(pairs), PACKED_TOGETHER):
        group = range(start, min(start + PACKED_TOGETHER, len(pairs)))
        for micro_batch in micro_batches([pairs[index].length for index in group], micro_batch_tokens):
            indices = [group[position] for position in micro_batch]
            token_logps, mask = pair_logps(model, [pairs[index] for index in indices], bf16=bf16)
            sums[:, indices] = token_logps.sum(dim=1).view(2, -1).cpu()
            rows = [row[kept] for row, kept in zip(token_logps.cpu(), mask.cpu(), strict=True)]
            for position, index in enumerate(indices):
                chosen[index], rejected[index] = rows[position], rows[len(indices) + position]
    return Reference(key, sums[0], sums[1], torch.cat(chosen), torch.cat(rejected))


def save_reference(path: Path, reference: Reference) -> None:
    """Write `reference` atomically as safetensors, its key in the metadata."""
    tensors = {
        "chosen_logps": reference.chosen_logps,
        "rejected_logps": reference.rejected_logps,
        "chosen_token_logps": reference.chosen_token_logps,
        "rejected_token_logps": reference.rejected_token_logps,
    }
    write_atomic(path, to_safetensors(tensors, {"key": reference.key}))


def load_reference(path: Path, key: str) -> Reference:
    """Read the reference of a run that is being resumed.

    Raises `RunFailed` where the file is missing, damaged, or of another model, data or precision.
    """
    mend = "put the file back, or start over in an empty directory"
    if not path.is_file():
        raise RunFailed(f"{path}: the reference log-probabilities of this run are missing; {mend}")
    reference = read_reference(path)
    if reference is None:
        raise RunFailed(f"{path}: not a whole file of reference log-probabilities; {mend}")
    if reference.key != key:
        parts = zip(reference.key.split(), key.split(), strict=False)
        other = ", ".join(ours.partition(":")[0] for theirs, ours in parts if theirs != ours)
        raise RunFailed(f"{path}: made from other {other} than this run; {mend}")
    return reference


def read_reference(path: Path) -> Reference | None:
    """The reference in `path`, whatever its key; `None` where there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Reference(key=file.metadata()["key"], **tensors)
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
