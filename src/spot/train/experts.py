"""Mixtures of experts: how a config tells one, and which part of their usual training is not here."""

import re
from collections.abc import Generator, Mapping
from typing import Any, cast

from transformers import PreTrainedConfig

_NUMBERS = re.compile(r"(num_(local_|routed_)?experts|n_routed_experts|moe_num_(primary_)?experts)")
_BALANCE = re.compile(r"aux_loss_(coef|alpha)|moe_loss_weight|router_(z_)?loss_(coef|weight)")


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether a model of `config` routes tokens to experts."""
    return any(_NUMBERS.fullmatch(name) and isinstance(value, int) and value > 1 for name, value in _entries(config))


def balance_notice(config: PreTrainedConfig) -> str | None:
    """What to say of a mixture of experts: its balancing loss is no part of any objective here."""
    if not has_experts(config):
        return None
    given = [
        f"{name}={value:g}"
        for name, value in _entries(config)
        if _BALANCE.search(name) and isinstance(value, int | float) and not isinstance(value, bool) and value
    ]
    named = f" ({', '.join(dict.fromkeys(given))} in its config)" if given else ""
    return (
        f"a mixture of experts: the loss that balances its router{named} is not computed, since it depends on the "
        "whole batch and a step may be cut at will here; losses are not those of trainers that add it"
    )


def _entries(config: Any) -> Generator[tuple[str, Any]]:
    values: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else config
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _entries(cast(Mapping[str, Any], value))
        else:
            yield str(name), value
