"""spot: surgical post-training. Correct a language model's own errors with minimal edits, train on the pairs.

The names below load what they need when they are first used: `import spot` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spot.pairs.change import change_ratio
    from spot.train.trainer import SpotConfig, SpotTrainer

__version__ = "0.1.0"
__all__ = ["SpotConfig", "SpotTrainer", "change_ratio"]

_HOMES = {
    "change_ratio": "spot.pairs.change",
    "SpotTrainer": "spot.train.trainer",
    "SpotConfig": "spot.train.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spot' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
