"""Writes docs/status.md: what is claimed to work, and when it last ran.

`python docs/make_status.py record NAME` runs a path's command and, where it succeeds, notes date, commit and device in
docs/status.jsonl; without arguments the page is written, with `--check` it is compared.
"""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS, PAGE = HERE / "status.jsonl", HERE / "status.md"
LAUNCH = "accelerate launch --config_file configs/accelerate"
PATHS = {
    "training: CPU, fp32, one process": "python -m pytest tests/train/test_trainer.py tests/train/test_shared.py",
    "training: CPU, bf16": "python -m pytest tests/train/test_precision.py",
    "training: CPU, DDP and FSDP2 on gloo, two processes": "python -m pytest tests/train/test_distributed.py",
    "training: CPU, LoRA": "python -m pytest tests/train/test_adapter.py",
    "training: one GPU, bf16": "python -m pytest tests/train/test_cuda.py",
    "training: GPUs, DDP and FSDP2": f"{LAUNCH}/fsdp2.yaml -m spot train ...",
    "training: GPUs, DeepSpeed ZeRO-2": f"{LAUNCH}/zero2.yaml -m spot train ...",
    "models: in process, CPU": "python -m pytest tests/models/test_local.py",
    "models: in process, GPU": "spot elicit --model NAME student.device=cuda ...",
    "models: endpoint with injected faults": "python -m pytest tests/models/test_endpoint_faults.py",
    "models: endpoint, transformers serve, two servers, one killed": "by hand, see docs/experiments.md",
    "models: endpoint, vLLM or SGLang": "spot elicit --model NAME student.base_url=http://host:8000/v1 ...",
    "models: endpoint, a paid provider": "spot rectify ... rectify.base_url=https://host/v1",
    "models: batch interface, simulated provider": "python -m pytest tests/models/test_batch.py",
    "models: batch interface, a paid provider": "spot rectify ... rectify.batch=true",
    "models: from the hub": "spot elicit --model Qwen/Qwen3-8B ...",
    "evaluation: the benchmarks' files, CPU": "python -m pytest tests/evaluate/test_tasks.py tests/test_measure.py",
    "evaluation: the benchmarks' rows from the hub": "spot eval --model NAME --tasks paper --output DIR",
    "evaluation: inspect_ai tasks and logs": "python -m pytest tests/evaluate/test_inspect.py",
    "the whole loop on the bundled student": "make demo",
}


def main() -> None:
    """Record, check or write."""
    match sys.argv[1:]:
        case ["record", name] if name in PATHS:
            record(name)
        case ["--check"]:
            if PAGE.read_text("utf-8") != page():
                sys.exit(f"{PAGE}: out of date; run python docs/make_status.py")
            return
        case []:
            pass
        case _:
            sys.exit(f"usage: make_status.py [--check | record NAME], NAME one of: {'; '.join(PATHS)}")
    PAGE.write_text(page(), "utf-8")


def record(name: str) -> None:
    """Run the command of a path; a run that failed, or that ran no test, is not noted."""
    command = PATHS[name].replace("python", sys.executable, 1)
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, cwd=HERE.parent)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode} ({last})")
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    row = {"path": name, "date": time.strftime("%Y-%m-%d"), "commit": described.stdout.strip(), "device": device()}
    with RUNS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def device() -> str:
    """The machine in a few words."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, CPU"


def page() -> str:
    """The page; the last run of a path counts."""
    runs: dict[str, dict[str, Any]] = {}
    for line in RUNS.read_text("utf-8").splitlines():
        row = json.loads(line)
        runs[row["path"]] = row
    lines = [
        "# What ran, and when",
        "",
        "Written by `docs/make_status.py` from `docs/status.jsonl`. A path that never ran says so: its code is there,",
        "and nobody has seen it work.",
        "",
        "| path | last ran | commit | on | command |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, command in PATHS.items():
        run = runs.get(name, {"date": "**never run**", "commit": "", "device": ""})
        note = f" ({run['note']})" if run.get("note") else ""
        lines.append(f"| {name} | {run['date']}{note} | {run['commit']} | {run['device']} | `{command}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
