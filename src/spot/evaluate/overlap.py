"""Questions of the evaluation that were trained on: their accuracy after training says nothing about new questions."""

from collections.abc import Sequence

from spot.schema import Pair, Problem, Prompt, as_messages


def overlap_note(task: str, questions: Sequence[Problem], pairs: Sequence[Pair]) -> str:
    """What a reader must know where questions of `task` have the prompt of a training pair; empty where none has."""
    trained = {_asked(pair.prompt) for pair in pairs}
    count = sum(_asked(question.prompt) in trained for question in questions)
    if not count:
        return ""
    return (
        f"{count:,} of {len(questions):,} questions of {task} are among the problems trained on (the same prompt); "
        "accuracy on these after training says nothing about new questions."
    )


def _asked(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content.strip()) for message in as_messages(prompt))
