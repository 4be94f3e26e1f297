import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_student import make_pairs, make_tokenizer
from transformers import AutoModelForCausalLM

from spot.errors import UserError
from spot.lab.student import STUDENT_DIR
from spot.train.command import main, parse
from spot.train.run import needed_packages
from spot.train.tokenize import tokenize_pairs


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """TRL's format: the three columns alone."""
    lines = [pair.model_dump(include={"prompt", "chosen", "rejected"}) for pair in make_pairs(6)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_it_trains_and_goes_on(
    dataset: Path, save_student: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    config = tmp_path / "train.yaml"
    limit = sorted(pair.length for pair in tokenize_pairs(make_pairs(6), make_tokenizer(), 512)[0])[3]
    config.write_text(
        f"max_length: {limit}\nlearning_rate: 1e-4\nloss_type: spot_bce\nper_device_train_batch_size: 2\n"
    )
    argv = ["--model_name_or_path", str(save_student()), "--dataset_name", str(dataset), "--output_dir", str(output)]
    main([*argv, "--config", str(config), "--num_train_epochs", "1"])
    shown = " ".join(capsys.readouterr().out.split())
    dropped = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    kept = 6 - len(dropped)
    assert 0 < kept < 6 and f"{kept} pairs" in shown and f"{len(dropped)} dropped" in shown
    assert all(1 <= int(row["id"]) <= 6 for row in dropped)
    AutoModelForCausalLM.from_pretrained(output)
    steps = len((output / "metrics.jsonl").read_text().splitlines())
    main([*argv, "--config", str(config), "--num_train_epochs", "1"])
    assert len((output / "metrics.jsonl").read_text().splitlines()) == steps
    assert not (tmp_path / "out.tmp").exists()


def test_the_reference_shows_how_far_it_is(
    dataset: Path, save_student: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int, str]] = []
    monkeypatch.setattr("spot.progress.Bar.update", lambda _, done, total, note: shown.append((done, total, note)))
    argv = ["--model_name_or_path", str(save_student()), "--dataset_name", str(dataset), "--max_steps", "1"]
    main([*argv, "--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "4"])
    assert shown[:2] == [(4, 6, "reference"), (6, 6, "reference done, first step")]
    assert [(done, total) for done, total, _ in shown[2:]] == [(1, 1)]


def test_lab_is_the_bundled_student(dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(f"model_name_or_path: lab\ndataset_name: {dataset}\noutput_dir: {tmp_path / 'out'}\n")
    main(["--config", str(config), "--max_steps", "1", "--micro_batch_tokens", "512"])
    trained, bundled = (AutoModelForCausalLM.from_pretrained(place) for place in (tmp_path / "out", STUDENT_DIR))
    assert trained.config.vocab_size == bundled.config.vocab_size


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("learning_rate: 1e-4\nbeta: 0.5\n")
    _, args = parse(["--config", str(config), "--beta", "0.25", "--output_dir", str(tmp_path)])
    assert (args.learning_rate, args.beta, args.loss_type) == (1e-4, 0.25, ["spot_bco"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--loss_type", "kto"], "unknown loss 'kto'"),
        (["--beta", "0"], "beta must be above 0"),
        (["--beta", "x"], "beta"),
        (["--no_such_flag", "1"], r"unknown argument --no_such_flag \(all flags"),
        (["--bta=1"], "unknown argument --bta=1; did you mean --beta"),
        (["--dataset_name", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--config", "missing.yaml"], "missing.yaml: cannot be read"),
        (["--config", __file__ + "/x"], "cannot be read"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere: not a whole checkpoint"),
    ],
)
def test_wrong_use_is_one_line_before_any_weight_is_loaded(
    flags: list[str], problem: str, dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    argv = ["--model_name_or_path", "no/such", "--dataset_name", str(dataset), "--output_dir", str(output), *flags]
    with pytest.raises(UserError, match=problem) as caught:
        main(argv)
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_a_file_without_the_columns_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: the field 'rejected' is missing"):
        main(["--model_name_or_path", "no/such", "--dataset_name", str(path), "--output_dir", str(tmp_path / "out")])


def test_an_unknown_key_in_the_file_gets_its_nearest(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("learning_rat: 1e-4\n")
    with pytest.raises(UserError, match="unknown key 'learning_rat'; did you mean learning_rate"):
        parse(["--config", str(config)])


def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_bytes(b"beta: \xff\n")
    with pytest.raises(UserError, match=r"train\.yaml: not valid YAML"):
        parse(["--config", str(config)])


def test_a_student_or_an_output_that_cannot_be_is_one_line(
    dataset: Path, save_student: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = save_student()
    argv = ["--model_name_or_path", str(student), "--dataset_name", str(dataset), "--micro_batch_tokens", "512"]
    with pytest.raises(UserError, match=r"pairs\.jsonl: cannot write \(File exists\)"):
        main([*argv, "--output_dir", str(dataset)])
    weights = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    capfd.readouterr()
    with pytest.raises(UserError, match="student: not a model that transformers can load"):
        main([*argv, "--output_dir", str(tmp_path / "out")])
    # The progress bar leaves no empty line before the error's.
    assert capfd.readouterr().err == "" and not (tmp_path / "out").exists()


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match="--model_name_or_path is required"):
        main([])


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "spot train --model_name_or_path" in shown and "--loss_type" in shown


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--loss_type sigmoid", "unknown loss 'sigmoid'; here it is dpo; choose one of"),
        ("--loss_type bco_pair", "here it is spot_bce"),
        ("--precompute_ref_log_probs", "unknown argument --precompute_ref_log_probs; the reference is always computed"),
        ("--use_peft --lora_dropout 0.1", "unknown argument --lora_dropout; an adapter has no dropout here"),
    ],
)
def test_what_trl_calls_otherwise_is_told(tmp_path: Path, flags: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        parse(["--output_dir", str(tmp_path), *flags.split()])


def test_a_setting_whose_package_is_missing_is_one_line() -> None:
    for error in (
        RuntimeError("WandbCallback requires wandb to be installed.\nRun pip"),
        ImportError("no bitsandbytes"),
    ):
        with pytest.raises(UserError, match="needs a package that is not installed"), needed_packages():
            raise error
    with pytest.raises(RuntimeError, match="of another kind"), needed_packages():
        raise RuntimeError("of another kind")
