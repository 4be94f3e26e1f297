"""Names and files of models: a directory told from a name on the hub, what is in it loaded, its weights told apart."""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spot.errors import UserError
from spot.plugin import call, registered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def model_path(name: str) -> str:
    """Where the weights called `name` are: the bundled student's directory for `lab`, else `name` as it stands."""
    return call("model", name) if registered("model", name) else name


def check_model_name(path: str) -> None:
    """Raise `UserError` unless `path` is a directory or may be a name on the hub (owner/name)."""
    # `runs/model` looks like a hub name too; where there is a folder `runs`, a directory is meant.
    if not Path(path).is_dir() and (Path(path).parent.is_dir() or not HUB_NAME.fullmatch(path)):
        raise UserError(f"{path}: no such model directory, and not a hub name (owner/name) either")


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of the model at `path`, a directory or a hub name; an adapter without one has that of its base.

    Raises `UserError` where there is none.
    """
    check_model_name(str(path))
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # broken files surface as many types, some of them bare `Exception`
        base = _base_of_adapter(path)
        if base is None:
            raise UserError(f"{path}: no tokenizer that transformers can load ({_first_line(error)})") from error
    try:
        return load_tokenizer(base)
    except UserError as error:
        raise UserError(f"{path}: an adapter without a tokenizer, and its base has none either: {error}") from error


def _base_of_adapter(path: str | Path) -> str | None:
    """The model that an adapter was trained on, as peft saved its name; `None` where `path` is not one without a
    tokenizer of its own."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(str(path))
        if file is None or (Path(path) / "tokenizer_config.json").exists():
            return None
        base = json.loads(Path(file).read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return base if isinstance(base, str) and base and base != str(path) else None


def load_model(path: str | Path, dtype: Any = "auto") -> "PreTrainedModel":
    """The causal language model at `path`; raises `UserError` where there is none, or not all of its weights.

    `dtype` is torch's, or "auto" for that of the files.
    """
    check_model_name(str(path))
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except Exception as error:  # as above
        raise UserError(f"{path}: not a model that transformers can load ({_first_line(error)})") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        # transformers fills these with random numbers and says nothing.
        raise UserError(f"{path}: {len(missing)} weights are missing from the checkpoint, the first is {missing[0]!r}")
    return model


def stop_ids(model: "PreTrainedModel | str") -> frozenset[int] | None:
    """The tokens that end the generation of `model`, loaded or a path, by its generation config, or else its config.

    `None` where neither names one.
    """
    from transformers import AutoConfig, GenerationConfig

    found: Any = None
    if not isinstance(model, str):
        found = getattr(model.generation_config, "eos_token_id", None)
    else:
        try:
            found = GenerationConfig.from_pretrained(model).eos_token_id
        except (OSError, ValueError):  # it has no such file
            with suppress(Exception):  # what is wrong with its config shows when it is loaded
                found = getattr(AutoConfig.from_pretrained(model).get_text_config(), "eos_token_id", None)
    return None if found is None else frozenset([found] if isinstance(found, int) else found)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def fingerprint(model_dir: Path) -> str:
    """Eight hex digits that tell a model's files apart, so that answers of other weights are never taken for these.

    Large files count by their size, first and last MiB: enough to tell trainings apart, cheap on any model.
    """
    digest = hashlib.sha256()
    for path in sorted(model_dir.glob("*.safetensors")) + sorted(model_dir.glob("*.json*")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:8]
