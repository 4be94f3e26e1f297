import random

import pytest

from spot.evaluate.overlap import overlap_note, overlaps
from spot.evaluate.wording import wording
from spot.schema import Message, Pair, Problem, Prompt


def pair(prompt: Prompt) -> Pair:
    return Pair(id="x", problem_id="x", prompt=prompt, chosen="b", rejected="c", change_ratio=0.1, oracle="o")


def question(prompt: Prompt) -> Problem:
    return Problem(id=str(prompt), prompt=prompt, answer="1")


def test_the_prompt_counts_and_not_the_id_or_the_format() -> None:
    questions = [question("What is 1?"), question("What is 2?"), question([Message(role="user", content="What is 3?")])]
    pairs = [pair([Message(role="user", content="What is 1?")]), pair("What is 3?\n"), pair("What is 4?")]
    note = overlap_note("held", questions, pairs)
    assert note.startswith("2 of 3 questions of held are among the problems trained on")


def test_a_system_prompt_is_a_wrapper_and_nothing_is_said_of_no_pairs() -> None:
    system = [Message(role="system", content="Be brief."), Message(role="user", content="What is 1?")]
    assert overlap_note("held", [question("What is 1?")], [pair(system)]).startswith("1 of 1 questions of held")
    assert overlap_note("held", [question("What is 1?")], []) == ""


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"$2^3 + 10^{15} \cdot 5^n$", "2³ + 10¹⁵ · 5ⁿ"),
        (r"$x_1 + x_{20} = 101_2$", "x₁ + x₂₀ = 101₂"),
        (r"$\alpha\beta \le \lambda_0 \neq \varepsilon$", "αβ ≤ λ₀ ≠ ε"),
        (r"$\Delta ABC,\ \angle A = 60^\circ$", "ΔABC, ∠A = 60°"),
        (r"$\sqrt{2} \pm \sqrt 3 \to \infty$", "√2 ± √3 → ∞"),
        (r"$\sum_{k \in \mathbb{R}} \ell \div k$", "∑_{k ∈ ℝ} ℓ ÷ k"),
        (r"$A \cap B \subseteq \varnothing \cup C, \ldots$", "A ∩ B ⊆ ∅ ∪ C, …"),
        (r"$\lfloor \pi \rfloor \times \varphi \equiv f^\prime$", "⌊π⌋ × φ ≡ f′"),
    ],
)
def test_a_formula_in_unicode_is_the_one_in_latex(latex: str, plain: str) -> None:
    assert wording(latex).joined == wording(plain).joined


def test_a_power_is_not_a_digit_of_its_base() -> None:
    assert wording("2³").joined != wording("23").joined


WORDS = "how many of them are there in the first row when each box of the shop holds exactly some apples or pears"


@pytest.mark.parametrize("seed", range(40))
def test_a_word_put_in_anywhere_leaves_a_near_copy(seed: int) -> None:
    rng = random.Random(seed)
    words = [
        f"{rng.randint(10, 99)}" if rng.random() < 0.3 else rng.choice(WORDS.split())
        for _ in range(rng.randint(10, 30))
    ]
    asked = question(" ".join(words))
    for place in range(1, len(words)):
        put_in = " ".join([*words[:place], "purple", *words[place:]])
        [found] = overlaps({"held": [asked]}, [pair(f"Solve this.\n\n{put_in}\n\nThink about it.")])
        assert found.kind == "near"
