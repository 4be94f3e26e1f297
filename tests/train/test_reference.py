from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_student import make_model
from transformers import Qwen3ForCausalLM

from spot.errors import RunFailed
from spot.train.logps import Scorer, accept_batches
from spot.train.reference import (
    Reference,
    compute_reference,
    load_reference,
    read_reference,
    reference_key,
    save_reference,
    student_hash,
)
from spot.train.tokenize import TokenizedPair


def reference_of(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair], key: str, budget: int = 4096) -> Reference:
    accept_batches(model)
    steps = [[3, 1, 0, 2], [9, 8, 7, 6], [5, 4]]
    return compute_reference(Scorer(model, False, False), tokenized, key, steps, micro_batch_tokens=budget)


def test_what_is_saved_is_what_is_read(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair], tmp_path: Path) -> None:
    reference = reference_of(model, tokenized, "weights:a tokens:b")
    save_reference(tmp_path / "reference.safetensors", reference)
    read = load_reference(tmp_path / "reference.safetensors", "weights:a tokens:b")
    for name in ("chosen_token_logps", "rejected_token_logps", "chosen_lengths", "rejected_lengths"):
        assert torch.equal(getattr(read, name), getattr(reference, name))


def test_tokens_are_in_the_pairs_order(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(model, tokenized, "key", 2 * max(pair.length for pair in tokenized))
    for index, pair in enumerate(tokenized):
        token_logps, mask = Scorer(model, False, False)([pair])
        for side, name in enumerate(("chosen", "rejected")):
            expected = token_logps[side][mask[side]].detach()
            padded = reference.padded(name, [index], len(expected) + 2)[0]
            torch.testing.assert_close(padded[:-2], expected, rtol=1e-5, atol=1e-5)
            assert not padded[-2:].any()


def test_the_key_follows_weights_tokens_and_precision(tokenized: list[TokenizedPair]) -> None:
    student = student_hash(make_model())
    key = reference_key(student, tokenized, "fp32")
    assert key == reference_key(student_hash(make_model()), tokenized, "fp32")
    nudged = make_model()
    with torch.no_grad():
        next(nudged.parameters())[0, 0] += 1e-6
    others = [
        reference_key(student_hash(nudged), tokenized, "fp32"),
        # No weight tells this apart.
        reference_key(
            student_hash(make_model(rope_parameters={"rope_type": "default", "rope_theta": 100.0})), tokenized, "fp32"
        ),
        reference_key(student, tokenized[::-1], "fp32"),
        reference_key(student, [replace(tokenized[0], chosen_ids=[1]), *tokenized[1:]], "fp32"),
        reference_key(student, tokenized, "bf16"),
    ]
    assert len({key, *others}) == 6


def test_a_resumed_run_takes_no_other_reference(
    model: Qwen3ForCausalLM, tokenized: list[TokenizedPair], tmp_path: Path
) -> None:
    file = tmp_path / "reference.safetensors"
    with pytest.raises(RunFailed, match="missing"):
        load_reference(file, "weights:a tokens:b")
    save_reference(file, reference_of(model, tokenized, "weights:x tokens:b"))
    with pytest.raises(RunFailed, match="other weights than"):
        load_reference(file, "weights:a tokens:b")
    file.write_bytes(file.read_bytes()[:-10])
    assert read_reference(file) is None
    with pytest.raises(RunFailed, match="not a whole file"):
        load_reference(file, "weights:a tokens:b")
