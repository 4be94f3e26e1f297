"""What both trainers work on: a model of a named shape with random weights, and pairs, all made on the spot.

The tokenizer has one token a word, so that a pair's length in tokens is chosen here and both trainers get the very same
token ids. Answers go on after the place where they part, they never meet again: that is what prefix sharing can use.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}{{ '\n' }}{{ message.content }}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def layer_weights(self) -> int:
        """Weights in one layer's matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Weights in all matrices, the embedding once or twice."""
        embeddings = self.hidden * self.vocabulary * (1 if self.tied else 2)
        return self.layers * self.layer_weights + embeddings


SHAPES = {
    "tiny": Shape(2, 64, 128, 4, 2, 16, 512, tied=False),
    "30m": Shape(6, 384, 1152, 6, 2, 64, 32_000, tied=False),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151_936, tied=True),
    "qwen3-1.7b": Shape(28, 2048, 6144, 16, 8, 128, 151_936, tied=True),
    "qwen3-8b": Shape(36, 4096, 12_288, 32, 8, 128, 151_936, tied=False),
}


@dataclass(frozen=True)
class Workload:
    """Which model and which pairs; the same values give the same bytes.

    `source` is `lengths` (random words, answers of `shortest` to `longest` tokens), `lab` (the bundled student and its
    world), or the path of GSM8K's `example_model_solutions.jsonl`.
    """

    source: str
    shape: str
    pairs: int
    shortest: int = 150
    longest: int = 1400
    seed: int = 0


def make_model(work: Workload, device: str, attention: str = "sdpa") -> Any:
    """A causal language model in fp32 on `device`."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    if work.source == "lab":
        from spot.hub import model_path

        return AutoModelForCausalLM.from_pretrained(model_path("lab"), dtype=torch.float32).to(device)
    shape = SHAPES[work.shape]
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        attn_implementation=attention,
    )
    torch.manual_seed(work.seed)
    with torch.device(device):
        return Qwen3ForCausalLM(config)


def make_data(work: Workload) -> tuple[Any, list[dict[str, str]]]:
    """A tokenizer that fits the model, and rows of `prompt`, `chosen`, `rejected`."""
    if work.source == "lab":
        from spot.hub import model_path
        from spot.train.weights import load_tokenizer

        return load_tokenizer(model_path("lab")), list(islice(_lab_rows(work), work.pairs))
    if work.source == "lengths":
        words = [f"w{number}" for number in range(SHAPES[work.shape].vocabulary - 6)]
        return _word_tokenizer(words), list(_random_rows(work, words))
    rows, texts = _gsm8k_rows(Path(work.source))
    return _text_tokenizer(texts, SHAPES[work.shape].vocabulary), random.Random(work.seed).sample(rows, work.pairs)


def _random_rows(work: Workload, words: list[str]) -> Iterator[dict[str, str]]:
    """Lengths are spread evenly over their logarithm, the place where answers part evenly over the answer."""
    rng = random.Random(work.seed)

    def text(count: int) -> list[str]:
        return rng.choices(words, k=count)

    for _ in range(work.pairs):
        length = round(work.shortest * (work.longest / work.shortest) ** rng.random())
        common = text(rng.randrange(length))
        other = min(work.longest, max(len(common) + 1, round(length * rng.uniform(0.9, 1.1))))
        chosen = [*common, "w0", *text(length - len(common) - 1)]
        rejected = [*common, "w1", *text(other - len(common) - 1)]
        yield {"prompt": " ".join(text(50)), "chosen": " ".join(chosen), "rejected": " ".join(rejected)}


def _word_tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", PAD, START, END, "user", "assistant", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return _chat_tokenizer(backend)


def _text_tokenizer(texts: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=[PAD, START, END], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return _chat_tokenizer(backend)


def _chat_tokenizer(backend: Any) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    backend.add_special_tokens([AddedToken(token, special=True) for token in (PAD, START, END)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _gsm8k_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Real wrong answers, each with its nearest right one where that changes at most 60% of the words; all texts."""
    from rapidfuzz.distance import Levenshtein

    from spot import change_ratio

    rows: list[dict[str, str]] = []
    texts: list[str] = []
    words: dict[str, int] = {}
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        solutions = [value for value in record.values() if isinstance(value, dict)]
        texts += [record["question"], *(solution["solution"] for solution in solutions)]
        right = [solution["solution"] for solution in solutions if solution["is_correct"]]
        for wrong in (solution["solution"] for solution in solutions if not solution["is_correct"]):
            if right:
                chosen = min(right, key=lambda text, wrong=wrong: Levenshtein.normalized_distance(wrong, text))
                ids = ([words.setdefault(word, len(words)) for word in text.split()] for text in (wrong, chosen))
                if change_ratio(*ids) <= 0.6:
                    rows.append({"prompt": record["question"], "chosen": chosen, "rejected": wrong})
    return rows, texts


def _lab_rows(work: Workload) -> Iterator[dict[str, str]]:
    """Stories of the bundled world, answered by its rules and with every half-believed rule followed the wrong way."""
    from spot.lab.stories import story_of
    from spot.lab.world import World

    world = World.load()
    style = next(iter(world.styles.values()))
    for problem in world.problems("in_domain", "train", 2 * work.pairs, work.seed):
        story = story_of(problem)
        right, wrong = world.work(story), world.work(story, (True,) * len(story.events))
        if right != wrong:
            chosen, rejected = ("".join(world.write(story, steps, style, 0)) for steps in (right, wrong))
            yield {"prompt": str(problem.prompt), "chosen": chosen, "rejected": rejected}
