"""The DeepSpeed config to start from, read as accelerate reads it; DeepSpeed itself needs a GPU."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_summed_in_fp32_and_clipped_as_asked(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parsed = launch.launch_command_parser().parse_args(["--config_file", "configs/accelerate/zero2.yaml", "train.py"])
    validated: Any = launch._validate_launch_command(parsed)  # pyright: ignore[reportPrivateUsage]
    given, defaults, from_config = validated
    assert not from_config  # a precision there, or any key beside the file's, and accelerate would refuse
    given.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    for name, value in prepare_deepspeed_cmd_env(given)[1].items():
        if name.startswith("ACCELERATE"):
            monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16" if bf16 else "no")
    found = plugin.deepspeed_config
    assert found["zero_optimization"]["stage"] == 2 and found["bf16"]["enabled"] == bf16
    assert found["data_types"] == {"grad_accum_dtype": "fp32"} and found["communication_data_type"] == "fp32"
    assert found["gradient_clipping"] == "auto"  # which transformers fills in with max_grad_norm
