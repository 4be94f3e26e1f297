"""Writes docs/students.md: what spot says of each family of models in the installed transformers.

`python docs/make_students.py` tries a tiny random model of every family (some two minutes); `--check` tries every
eighth again and sees that the page has them all. Under another transformers than the page's it fails: other families,
other models.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
PAGE = HERE / "students.md"
sys.path.insert(0, str(HERE.parent))
ROW = re.compile(r"^\| `(?P<family>[^`]+)` \| (?P<verdict>[^|]+) \| (?P<why>[^|]*) \|$", re.MULTILINE)
HEAD = """# Which students can be trained

Written by `docs/make_students.py` with transformers {version}: a tiny random model of each family that it maps to a
causal language model, with its default config made small, is made ready as `spot train` does, on pairs of which one is
long. The same is done with your model and your pairs whenever training starts, and that decides: a config may have
another rotary embedding, window or cap than its family's default.

- **shared**: what both answers of a pair share is run once, and pairs share a row.
- **plain**: each answer is run as a plain sequence, padded in a batch. Slower, and the same values.
- **alone**: each answer has a forward of its own, since the longest sequence of a forward decides how all are computed.
  None has that by default; long RoPE (Phi-3.5, Phi-4-mini) with pairs on both sides of the original length has, and so
  has dynamic RoPE with pairs beyond it.
- **refused**: training stops before it starts, in one line.
- **not tried**: no tiny model of the family is made here, for the reason given.

A family of several parts is tried as `AutoModelForCausalLM` makes it: of the text part alone where it takes that, else
with all parts, run on text.

Values of a mixture of experts are exact in this sense, too; the loss that balances its router is not computed
([coming-from-trl.md](coming-from-trl.md)).

| family | verdict | why |
| --- | --- | --- |
"""


def main() -> None:
    """Write, or check."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    from tests.families import FAMILIES, verdict

    check = sys.argv[1:] == ["--check"]
    text = PAGE.read_text("utf-8") if check else ""
    if check and f"transformers {transformers.__version__}:" not in text:
        sys.exit(
            f"{PAGE}: not checked: it was made with another transformers than {transformers.__version__}; install the "
            "one that it names (constraints.txt), or run python docs/make_students.py"
        )
    with tempfile.TemporaryDirectory() as output:
        tried = {family: verdict(family, output) for family in (FAMILIES[::8] if check else FAMILIES)}
    rows = {family: f"| `{family}` | {said} | {why} |" for family, (said, why) in tried.items()}
    if not check:
        PAGE.write_text(HEAD.format(version=transformers.__version__) + "\n".join(rows.values()) + "\n", "utf-8")
        return
    kept = {match["family"]: match[0] for match in ROW.finditer(text)}
    wrong = sorted(set(kept) ^ set(FAMILIES)) + [family for family, row in rows.items() if kept.get(family) != row]
    if wrong:
        sys.exit(f"{PAGE}: out of date ({', '.join(wrong)}); run python docs/make_students.py")


if __name__ == "__main__":
    main()
