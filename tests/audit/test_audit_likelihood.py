"""Log-likelihoods and full-vocabulary KL against a plain twin that holds all logits."""

import math
import random
from array import array
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer

from spot.audit import likelihood
from spot.audit.likelihood import LikelihoodAudit, batches, token_scores
from spot.audit.summary import Likelihood
from spot.errors import RunFailed, UserError
from spot.train.tokenize import TokenizedPair, tokenize_pairs


@pytest.fixture(scope="module")
def pairs() -> list[TokenizedPair]:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    return tokenize_pairs(make_pairs(7), tokenizer, 512)[0]


def scores(audit: LikelihoodAudit, pairs: list[TokenizedPair]) -> list[Likelihood]:
    found = dict(audit.score(pairs))
    return [found[place] for place in range(len(pairs))]


@torch.no_grad()
def plain(model: Any, pair: TokenizedPair, side: Any) -> torch.Tensor:
    """Next-token log-probabilities at every place of an answer, `(tokens, vocabulary)` fp64."""
    ids = torch.tensor([[*pair.prompt_ids, *pair.completion(side)]])
    return model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1].double().log_softmax(-1)


def test_rows_are_those_of_the_plain_twin(pairs: list[TokenizedPair]) -> None:
    student, trained = make_model(0), make_model(1)
    for pair, row in zip(pairs, scores(LikelihoodAudit(student, trained), pairs), strict=True):
        edit = pair.num_common
        assert row.shared_tokens == edit
        for side, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
            ids = torch.tensor(list(pair.completion(side)))  # type: ignore[arg-type]
            logps = plain(student, pair, side).gather(-1, ids[:, None])[:, 0]
            assert answer.tokens == len(ids)
            assert answer.logp == pytest.approx(float(logps.sum()), abs=1e-3)
            assert answer.perplexity == pytest.approx(math.exp(-float(logps.mean())), rel=1e-4)
            assert answer.logp_from_edit == pytest.approx(float(logps[edit:].sum()), abs=1e-3)
            assert answer.perplexity_from_edit == pytest.approx(math.exp(-float(logps[edit:].mean())), rel=1e-4)
        before, after = plain(student, pair, "chosen"), plain(trained, pair, "chosen")
        kl = (after.exp() * (after - before)).sum(-1)
        assert row.kl is not None
        assert row.kl.mean == pytest.approx(float(kl.mean()), abs=1e-5)
        assert row.kl.before == pytest.approx(float(kl[:edit].mean()), abs=1e-5)
        assert row.kl.from_edit == pytest.approx(float(kl[edit:].mean()), abs=1e-5)
        nll = [-answer.logp / answer.tokens for answer in (row.chosen, row.rejected)]
        assert row.divergence == pytest.approx(nll[0] - nll[1])


def test_blocks_batches_and_order_do_not_matter(pairs: list[TokenizedPair], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scores(LikelihoodAudit(make_model(0), make_model(1)), pairs)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", {"cpu": 3 * 272})
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", {"cpu": 1})
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    shuffled = scores(LikelihoodAudit(make_model(0), make_model(1)), [pairs[place] for place in order])
    for place, row in zip(order, shuffled, strict=True):
        assert row.chosen.logp == pytest.approx(whole[place].chosen.logp, abs=1e-4)
        assert row.rejected.logp == pytest.approx(whole[place].rejected.logp, abs=1e-4)
        kl, other = row.kl, whole[place].kl
        assert kl and other and kl.mean == pytest.approx(other.mean, abs=1e-6)


def test_a_student_that_was_not_moved_has_no_kl(pairs: list[TokenizedPair]) -> None:
    audit = LikelihoodAudit(make_model(0), make_model(0))
    assert all(row.kl is not None and abs(row.kl.mean) < 1e-9 for row in scores(audit, pairs))
    assert scores(LikelihoodAudit(make_model(0), None), pairs)[0].kl is None


def test_the_summary_adds_up(pairs: list[TokenizedPair]) -> None:
    audit = LikelihoodAudit(make_model(0), make_model(1))
    rows = scores(audit, pairs)
    found = audit.summary("tiny", "trained")
    assert found.pairs == len(pairs)
    tokens = sum(row.chosen.tokens for row in rows)
    total = sum(row.chosen.logp for row in rows)
    assert found.chosen.perplexity == pytest.approx(math.exp(-total / tokens))
    assert sum(row.chosen_tokens for row in found.profile) == tokens
    assert sum(row.chosen_tokens * (row.chosen_nll or 0) for row in found.profile) == pytest.approx(-total)
    before = sum(row.chosen.logp - row.chosen.logp_from_edit for row in rows)
    shared = sum(row.shared_tokens for row in rows)
    assert found.perplexity_before == pytest.approx(math.exp(-before / shared))
    assert found.kl is not None
    mean = sum(row.chosen_tokens * (row.chosen_kl or 0) for row in found.profile) / tokens
    assert found.kl.mean == pytest.approx(mean)
    assert sum(row.chosen_tokens for row in found.profile if row.last < 0) == shared


def test_no_tensor_of_all_tokens_by_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    head = torch.nn.Linear(4, 100, bias=False)
    head.register_forward_hook(lambda _, __, logits: seen.append(tuple(logits.shape)))
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", {"cpu": 1000})
    states = torch.randn(95, 4)
    with torch.no_grad():
        token_scores([head, head], [states, states], torch.zeros(95, dtype=torch.long))
    assert max(rows for rows, _ in seen) == 10


def test_batches_hold_every_place_once_and_their_budget() -> None:
    lengths = [5, 9, 2, 7, 7, 30, 1]
    found = list(batches(lengths, 20))
    assert sorted(place for batch in found for place in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= 20 for batch in found)
    assert found[0] == [5]


def test_damaged_weights_and_foreign_tokens_are_refused(pairs: list[TokenizedPair]) -> None:
    broken: Any = make_model(0)
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunFailed, match="not finite"):
        scores(LikelihoodAudit(make_model(0), broken), pairs)
    foreign = TokenizedPair("odd", array("i", [1]), array("i", [999, 2]), array("i", [3, 2]))
    with pytest.raises(UserError, match="pair 'odd'"):
        scores(LikelihoodAudit(make_model(0), None), [foreign])


def test_a_model_that_caps_its_logits_is_refused(pairs: list[TokenizedPair]) -> None:
    capped: Any = make_model(0)
    forward = capped.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    capped.forward = scaled
    with pytest.raises(RunFailed, match="--skip_models"):
        scores(LikelihoodAudit(capped, None), pairs)
