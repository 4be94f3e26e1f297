from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_student import make_model
from transformers import Qwen3ForCausalLM

from spot.errors import RunFailed, UserError
from spot.train.logps import Scorer, accept_batches
from spot.train.ranks import Ranks
from spot.train.reference import (
    Reference,
    compute_reference,
    load_reference,
    read_reference,
    reference_key,
    save_reference,
    starting_reference,
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


def test_a_reference_of_other_code_is_told_apart(
    model: Qwen3ForCausalLM, tokenized: list[TokenizedPair], tmp_path: Path
) -> None:
    key = reference_key("student", tokenized, "fp32")
    save_reference(tmp_path / "reference.safetensors", reference_of(model, tokenized, key.rpartition(" ")[0]))
    with pytest.raises(RunFailed, match="made from other scoring than this run"):
        load_reference(tmp_path / "reference.safetensors", key)


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


def test_a_file_that_is_no_reference_is_never_replaced(
    model: Qwen3ForCausalLM, tokenized: list[TokenizedPair], tmp_path: Path
) -> None:
    made = reference_of(model, tokenized, "key")
    weights, notes, missing = tmp_path / "model.safetensors", tmp_path / "notes.txt", tmp_path / "reference.safetensors"
    model.save_pretrained(tmp_path)
    notes.write_text("precious")
    for path in (weights, notes):
        before = path.read_bytes()
        with pytest.raises(UserError, match=f"{path.name}: exists and is not a file of reference log-probabilities"):
            starting_reference(path, shared_file=True, key="key", compute=lambda: made, ranks=Ranks())
        assert path.read_bytes() == before
    assert starting_reference(missing, shared_file=True, key="key", compute=lambda: made, ranks=Ranks()) is made
    assert missing.is_file()


def test_where_one_process_cannot_use_a_file_all_stop(
    model: Qwen3ForCausalLM, tokenized: list[TokenizedPair], tmp_path: Path
) -> None:
    file = tmp_path / "reference.safetensors"
    save_reference(file, reference_of(model, tokenized, "key"))

    def never() -> Reference:
        raise AssertionError

    def starting(key: str, ranks: Ranks) -> Reference:
        return starting_reference(file, shared_file=True, key=key, compute=never, ranks=ranks)

    gathered: list[float] = []

    def alone(verdict: torch.Tensor) -> torch.Tensor:
        gathered.append(float(verdict))
        return verdict

    with pytest.raises(UserError, match="made from other"):
        starting("another", Ranks(0, 2, alone))
    with pytest.raises(RunFailed, match="missing"):
        load_reference(tmp_path / "none", "key", Ranks(0, 2, alone))
    assert gathered == [1, 1]  # the others were told before this one left
    others = Ranks(1, 2, lambda verdict: verdict + 1)
    with pytest.raises(UserError, match="another process cannot use it"):
        starting("key", others)
    with pytest.raises(RunFailed, match="another process cannot use it"):
        load_reference(file, "key", others)
