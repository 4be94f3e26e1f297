"""How the student was trained: from scratch, on its world's text, counted in steps, the same on every run of a machine.

One step is 96 questions of the three families with the answers that the world's training text gives; the loss is over
the answers only. A killed training resumes from its last checkpoint.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spot.errors import UserError
from spot.files.disk import replacing
from spot.lab.muon import Muon
from spot.lab.student import END_OF_TURN, build_model, build_tokenizer
from spot.lab.world import FAMILIES, World
from spot.schema import derived_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@dataclass(frozen=True)
class Recipe:
    """What decides the student, beside its world. `mixture` is the share of each family in the training text."""

    steps: int = 3000
    questions_per_step: int = 96
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    mixture: tuple[float, float, float] = (0.3, 0.38, 0.32)
    seed: int = 0
    checkpoint_every: int = 250
    shape: dict[str, Any] = field(default_factory=dict)


# Batches are cut from a pool this many steps deep, sorted by length, so that little is padding.
POOL_STEPS = 16


def train_student(
    world: World, recipe: Recipe, output_dir: Path, on_step: Callable[[int, int, float], None] | None = None
) -> "tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]":
    """Train a student and save it to `output_dir` in the Hugging Face layout."""
    tokenizer = build_tokenizer(world)
    model = build_model(tokenizer, recipe.seed, **recipe.shape)
    optimizer = Muon(model, recipe.weight_decay)
    checkpoint = output_dir / "checkpoint.pt"
    origin = {"recipe": asdict(recipe), "world": dict(world.raw)}
    start = _load(checkpoint, model, optimizer, origin)
    model.train()
    for step, batch in enumerate(batches(world, tokenizer, recipe, start), start=start):
        loss = answer_loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(recipe.learning_rate * schedule(step, recipe.steps, recipe.warmup_steps))
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, recipe.steps, float(loss.detach()))
        if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < recipe.steps:
            _save(checkpoint, step + 1, model, optimizer, origin)
    model.eval()
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    checkpoint.unlink(missing_ok=True)
    return model, tokenizer


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def batches(
    world: World, tokenizer: "PreTrainedTokenizerFast", recipe: Recipe, start: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of `(input_ids, attention_mask, answer_mask)`, each `(questions_per_step, longest)`."""
    pad: Any = tokenizer.pad_token_id
    for pool in range(start // POOL_STEPS, math.ceil(recipe.steps / POOL_STEPS)):
        rows = _tokenized(world, tokenizer, recipe, pool)
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        order = random.Random(derived_seed(recipe.seed, "order", pool)).sample(range(POOL_STEPS), k=POOL_STEPS)
        for offset, place in enumerate(order):
            step = pool * POOL_STEPS + offset
            if not start <= step < recipe.steps:
                continue
            batch = rows[place * recipe.questions_per_step : (place + 1) * recipe.questions_per_step]
            width = max(len(prompt) + len(answer) for prompt, answer in batch)
            ids = torch.full((len(batch), width), pad)
            mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            for i, (prompt, answer) in enumerate(batch):
                length = len(prompt) + len(answer)
                ids[i, :length] = torch.tensor(prompt + answer)
                mask[i, :length] = 1
                scored[i, len(prompt) : length] = True
            yield ids, mask, scored


def _tokenized(
    world: World, tokenizer: "PreTrainedTokenizerFast", recipe: Recipe, pool: int
) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(derived_seed(recipe.seed, "families", pool))
    count = POOL_STEPS * recipe.questions_per_step
    families = rng.choices(FAMILIES, weights=recipe.mixture, k=count)
    drawn = [world.problem(family, "pretrain", recipe.seed, pool * count + i) for i, family in enumerate(families)]
    chats = [[{"role": "user", "content": str(problem.prompt)}] for problem, _ in drawn]
    prompts: Any = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    answers = [text + END_OF_TURN for _, text in drawn]
    return list(
        zip(
            tokenizer(prompts, add_special_tokens=False)["input_ids"],
            tokenizer(answers, add_special_tokens=False)["input_ids"],
            strict=True,
        )
    )


def answer_loss(model: "Qwen3ForCausalLM", ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the answers' tokens, averaged over each answer and then over answers.

    Answers count alike whatever their length: a retained skill is often one token, a story's answer fifty. The head
    runs at the scored positions only.
    """
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    target = scored[:, 1:]
    logits = model.lm_head(hidden[:, :-1][target])
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][target], reduction="none")
    lengths = target.sum(dim=1, keepdim=True).expand_as(target)[target]
    return (losses / lengths).sum() / len(ids)


def _save(path: Path, step: int, model: Any, optimizer: Any, origin: dict[str, Any]) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "origin": origin}
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _load(path: Path, model: Any, optimizer: Any, origin: dict[str, Any]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["origin"] != origin:
        raise UserError(f"{path}: a checkpoint of another recipe or world; delete it or choose another directory")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
