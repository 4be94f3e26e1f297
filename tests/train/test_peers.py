"""The same numbers as TRL's: losses, gradients and weights over ten steps, reference sums, token log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback

from spot.schema import Pair
from spot.train.head import Tile, head_logps
from spot.train.trainer import SpotConfig, SpotTrainer

pytestmark = pytest.mark.slow

PAIRS, A_STEP, STEPS = 20, 4, 10
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "weight_decay": 0.01,
    "adam_beta2": 0.95,
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
    "beta": 0.1,
    "max_length": 512,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass
class Trained:
    """What a trainer did: each step's loss and gradient (clipped), the reference's sums, the weights at the end."""

    losses: list[float] = field(default_factory=list[float])
    gradients: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])
    references: list[list[float]] = field(default_factory=list[list[float]])
    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


class Watch(TrainerCallback):
    def __init__(self, model: Any, kept: Trained) -> None:
        self.model, self.kept = model, kept

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = self.model.named_parameters()
        self.kept.gradients.append({name: parameter.grad.clone() for name, parameter in named})


def recording(trainer_class: Any, kept: Trained, parts: int) -> Any:
    """`trainer_class` that adds the loss of every `parts` calls, which make a step, to `kept`."""
    calls: list[float] = []

    class Recording(trainer_class):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().training_step(*args, **kwargs)
            calls.append(float(loss))
            if len(calls) % parts == 0:
                kept.losses.append(sum(calls[-parts:]))
            return loss

    return Recording


def peer_tokenizer() -> PreTrainedTokenizerFast:
    """TRL ends plain text with the tokenizer's own end token: make it the one that ends a turn."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def rows(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Pairs as plain text for TRL, the chat template applied."""
    return [
        {"prompt": str(prompt), "chosen": str(pair.chosen), "rejected": str(pair.rejected)}
        for pair in pairs
        for prompt in [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": str(pair.prompt)}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        ]
    ]


def train_spot(directory: Path, **settings: Any) -> tuple[Trained, list[list[int]], list[Any]]:
    """Ten steps; also which pairs were in each, and the token ids."""
    kept, model = Trained(), make_model()
    args = SpotConfig(output_dir=str(directory / "spot"), per_device_train_batch_size=A_STEP, **(SETTINGS | settings))
    trainer = recording(SpotTrainer, kept, 1)(model, args, make_pairs(PAIRS), processing_class=peer_tokenizer())
    trainer.add_callback(Watch(model, kept))
    trainer.train()
    reference = trainer.reference
    for index, pair in enumerate(trainer.pairs):
        sides = (("chosen", list(pair.chosen_ids)), ("rejected", list(pair.rejected_ids)))
        kept.references.append([float(reference.padded(side, [index], len(ids)).sum()) for side, ids in sides])
    kept.weights = model.state_dict()
    steps = [step for epoch in range(STEPS * A_STEP // PAIRS) for step in trainer.sampler.steps(epoch)]
    return kept, steps, trainer.pairs


def common_settings(directory: Path, batch: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What both of TRL's trainers are told: `batch` pairs a forward, in the order of the rows."""
    return {
        "output_dir": str(directory / "trl"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": A_STEP // batch,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        **{name: value for name, value in (SETTINGS | settings).items() if value is not None},
    }


def train_dpo(directory: Path, steps: list[list[int]], tokens: list[Any], batch: int, **settings: Any) -> Trained:
    """The same steps with TRL's DPOTrainer; first, that it has the same token ids."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    tokenizer, kept, model = peer_tokenizer(), Trained(), make_model()
    order = [index for step in steps for index in step]
    texts = rows(tokenizer, make_pairs(PAIRS))
    args = DPOConfig(precompute_ref_log_probs=True, **common_settings(directory, batch, settings))
    data = Dataset.from_list([texts[index] for index in order])
    make = recording(DPOTrainer, kept, A_STEP // batch)
    trainer = make(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    for row, index in zip(trainer.train_dataset, order, strict=True):
        ids = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        assert ids == (list(tokens[index].prompt_ids), list(tokens[index].chosen_ids), list(tokens[index].rejected_ids))
    sums = trainer.train_dataset.select([order.index(index) for index in range(PAIRS)])
    kept.references = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in sums]
    trainer.add_callback(Watch(model, kept))
    trainer.train()
    kept.weights = model.state_dict()
    return kept


def train_sft(directory: Path, steps: list[list[int]], tokens: list[Any], batch: int, **settings: Any) -> Trained:
    """The same steps with TRL's SFTTrainer on the chosen answers; first, that it has the same token ids."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    tokenizer, kept, model = peer_tokenizer(), Trained(), make_model()
    order = [index for step in steps for index in step]
    texts = rows(tokenizer, make_pairs(PAIRS))
    args = SFTConfig(**common_settings(directory, batch, settings | {"beta": None}))
    data = Dataset.from_list([{"prompt": texts[i]["prompt"], "completion": texts[i]["chosen"]} for i in order])
    make = recording(SFTTrainer, kept, A_STEP // batch)
    trainer = make(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    for row, index in zip(trainer.train_dataset, order, strict=True):
        assert row["input_ids"] == list(tokens[index].prompt_ids) + list(tokens[index].chosen_ids)
    trainer.add_callback(Watch(model, kept))
    trainer.train()
    kept.weights = model.state_dict()
    return kept


# What spot is told; TRL's trainer, what it is told, and the pairs in each of its forwards. DPOTrainer's `sft` averages
# over the tokens of a forward, not of a step: the two are the same where a forward is a step.
BCO, DPO_SFT = {"loss_type": ["bco_pair"]}, {"loss_weights": [1.0, 0.1]}
PEERS = [
    pytest.param({"loss_type": ["spot_bce"]}, train_dpo, BCO, 2, id="spot_bce"),
    pytest.param({"loss_type": ["spot_bco"], "reward_shift": "none"}, train_dpo, BCO, 4, id="spot_bco-no-shift"),
    pytest.param({"loss_type": ["dpo"]}, train_dpo, {"loss_type": ["sigmoid"]}, 1, id="dpo"),
    pytest.param({"loss_type": ["sft"]}, train_dpo, {"loss_type": ["sft"]}, 4, id="sft"),
    pytest.param(
        {"loss_type": ["dpo", "sft"]} | DPO_SFT, train_dpo, {"loss_type": ["sigmoid", "sft"]} | DPO_SFT, 4, id="dpo+sft"
    ),
    pytest.param({"loss_type": ["sft"]}, train_sft, {"loss_type": "nll"}, 2, id="sft-SFTTrainer"),
    pytest.param({"loss_type": ["dft"]}, train_sft, {"loss_type": "dft"}, 1, id="dft-SFTTrainer"),
]


@pytest.mark.parametrize(("ours", "train_peer", "theirs", "batch"), PEERS)
def test_ten_steps_are_trls(
    ours: dict[str, Any], train_peer: Any, theirs: dict[str, Any], batch: int, tmp_path: Path
) -> None:
    spot, steps, tokens = train_spot(tmp_path, **ours)
    trl = train_peer(tmp_path, steps, tokens, batch, **theirs)
    assert len(spot.losses) == len(trl.losses) == STEPS
    assert spot.losses == pytest.approx(trl.losses, rel=1e-5)
    for step, (mine, peer) in enumerate(zip(spot.gradients, trl.gradients, strict=True)):
        assert mine.keys() == peer.keys()
        for name, gradient in peer.items():
            assert float((mine[name] - gradient).norm() / gradient.norm()) < 1e-5, (step, name)
    start = make_model().state_dict()
    for name, weight in trl.weights.items():
        assert not torch.equal(weight, start[name])
        torch.testing.assert_close(spot.weights[name], weight, rtol=1e-5, atol=1e-5)
    if trl.references:
        torch.testing.assert_close(torch.tensor(spot.references), torch.tensor(trl.references), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [None, (7, 100)])
def test_token_log_probabilities_are_trls(tile: Tile | None) -> None:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import selective_log_softmax

    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(32, 272, bias=False)
    hidden = torch.randn(3, 11, 32, generator=generator)
    targets = torch.randint(272, (3, 11), generator=generator)
    weights = torch.randn(33, generator=generator)

    def run(score: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs = hidden.clone().requires_grad_()
        head.weight.grad = None
        logps = score(inputs).flatten()
        (logps * weights).sum().backward()
        assert inputs.grad is not None and head.weight.grad is not None
        return logps.detach(), inputs.grad, head.weight.grad

    mine = run(lambda inputs: head_logps(head, inputs.flatten(0, 1), targets.flatten(), tile))
    naive = run(lambda inputs: selective_log_softmax(head(inputs), targets))
    chunked = run(
        lambda inputs: ChunkedLogProbFunction.apply(
            inputs.flatten(0, 1), head.weight, None, targets.flatten(), 1.0, 64, None, 1.0, ()
        )[0]
    )
    for peer in (naive, chunked):
        for ours, theirs in zip(mine, peer, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
