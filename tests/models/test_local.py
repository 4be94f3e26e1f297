import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_model import CONTEXT, END_IDS, TEMPLATE, WORDS, save_tiny_model, save_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from spot.errors import RunFailed, UserError
from spot.models.base import Reply, Request
from spot.models.local import model as local
from spot.models.local.model import LocalModel, decoded
from spot.schema import Message, Sampling, derived_seed

SAMPLING = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=40, seed=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def exact(directory: Path) -> LocalModel:
    """In float64, where a batch and a single row draw the same tokens."""
    return LocalModel(str(directory), batch_size=16, dtype="float64")


def request(identity: str, *words: str, role: Any = "user") -> Request:
    messages = (Message(role=role, content=" ".join(words)),)
    return Request(identity, messages, derived_seed(1, identity))


def questions(count: int, longest: int = 12) -> list[Request]:
    """Questions of many lengths in no order; their words depend on their number only."""
    picked = [
        np.random.default_rng(number).integers(0, len(WORDS), 1 + number * 7 % longest) for number in range(count)
    ]
    return [request(f"q{number}", *(WORDS[word] for word in words)) for number, words in enumerate(picked)]


def groups(
    model: LocalModel, requests: Sequence[Request], sampling: Sampling = SAMPLING, done: Sequence[str] = ()
) -> list[list[Reply]]:
    async def gather() -> list[list[Reply]]:
        return [group async for group in model.generate(requests, sampling, frozenset(done))]

    return asyncio.run(gather())


def replies(model: LocalModel, requests: Sequence[Request], sampling: Sampling = SAMPLING) -> dict[str, Reply]:
    return {reply.id: reply for group in groups(model, requests, sampling) for reply in group}


def plain(directory: Path) -> tuple[Any, Any]:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval(), tokenizer


def prompt_ids(tokenizer: Any, asked: Request) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in asked.messages],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def slow_answer(model: Any, ids: list[int], seed: int, sampling: Sampling) -> list[int]:
    """One request at a time, no cache, the whole text through the model for every token, sampling in plain Python."""
    answer: list[int] = []
    for u in np.random.Generator(np.random.Philox(seed)).random(sampling.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0, -1]
        probs = torch.softmax(logits / sampling.temperature, -1).tolist()
        kept: list[int] = []
        for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
            if sum(probs[other] for other in kept) < sampling.top_p:
                kept.append(token)
        cumulative = np.cumsum([probs[token] for token in kept])
        answer.append(kept[int((cumulative <= u * cumulative[-1]).sum())])
        if answer[-1] in END_IDS:
            break
    return answer


def test_batched_cached_sampling_is_its_slow_twin(directory: Path, exact: LocalModel) -> None:
    model, tokenizer = plain(directory)
    requests = questions(40)
    answered = replies(exact, requests)
    for asked in requests:
        expected = slow_answer(model, prompt_ids(tokenizer, asked), asked.seed, SAMPLING)
        assert list(answered[asked.id].token_ids or ()) == expected
    lengths = {len(reply.token_ids or ()) for reply in answered.values()}
    assert len(lengths) > 5, "answers must end at many places, or the shrinking of batches is not tested"


def test_greedy_is_generate_of_transformers_also_past_the_first_cache_room(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, seed=5)
    sampling = Sampling(temperature=0, max_new_tokens=100)
    model, tokenizer = plain(directory)
    requests = questions(12)
    answered = replies(LocalModel(str(directory), dtype="float64"), requests, sampling)
    for asked in requests:
        ids = prompt_ids(tokenizer, asked)
        whole = model.generate(torch.tensor([ids]), max_new_tokens=100, do_sample=False, eos_token_id=list(END_IDS))
        assert list(answered[asked.id].token_ids or ()) == whole[0, len(ids) :].tolist()
    assert max(len(reply.token_ids or ()) for reply in answered.values()) > 70


def test_sliding_window_layers_keep_their_own_cache(tmp_path: Path) -> None:
    directory = save_tiny_model(
        tmp_path, use_sliding_window=True, sliding_window=6, layer_types=["full_attention", "sliding_attention"]
    )
    model, tokenizer = plain(directory)
    requests = questions(12)
    answered = replies(LocalModel(str(directory), dtype="float64"), requests)
    for asked in requests:
        expected = slow_answer(model, prompt_ids(tokenizer, asked), asked.seed, SAMPLING)
        assert list(answered[asked.id].token_ids or ()) == expected


def test_an_answer_depends_on_its_seed_alone(exact: LocalModel) -> None:
    requests = questions(20)
    whole = replies(exact, requests)
    assert replies(exact, requests[7:9]) == {asked.id: whole[asked.id] for asked in requests[7:9]}
    twice = [request("a", "w1"), request("b", "w1"), Request("c", request("a", "w1").messages, derived_seed(1, "a"))]
    samples = replies(exact, twice)
    assert samples["a"].token_ids == samples["c"].token_ids != samples["b"].token_ids


def test_stop_and_length_and_what_the_text_holds(directory: Path, exact: LocalModel) -> None:
    answered = replies(exact, questions(60), Sampling(temperature=1.5, top_p=1, max_new_tokens=12)).values()
    assert {reply.finish_reason for reply in answered} == {"stop", "length"}
    ends: set[int] = set()
    for reply in answered:
        ids = list(reply.token_ids or ())
        stopped = ids[-1] in END_IDS
        assert reply.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(ids) == 12
        assert not set(ids[:-1]) & set(END_IDS)
        assert "<end>" not in reply.text and "<stop>" not in reply.text and "<start>" not in reply.text
        ends |= {ids[-1]} & set(END_IDS)
    assert ends == set(END_IDS), "both end-of-turn tokens must have been met"


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_a_resumed_run_gives_the_missing_replies_bit_for_bit(directory: Path, batch_size: int) -> None:
    model = LocalModel(str(directory), batch_size=batch_size, dtype="float32")
    requests = questions(33)
    whole = groups(model, requests)
    assert sorted(reply.id for group in whole for reply in group) == sorted(asked.id for asked in requests)
    assert max(map(len, whole)) == batch_size
    for num_whole, num_torn in [(0, 0), (1, 0), (1, batch_size // 2), (len(whole), 0)]:
        kept = [reply.id for group in whole[:num_whole] for reply in group]
        if num_torn:
            kept += [reply.id for reply in whole[num_whole][:num_torn]]
        rest = [[reply for reply in group if reply.id not in kept] for group in whole]
        assert groups(model, requests, done=kept) == [group for group in rest if group]


def test_a_batch_that_is_done_is_not_computed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(str(directory), batch_size=8)
    requests = questions(24)
    first, *_ = groups(model, requests)
    computed: list[int] = []
    decode = model._decode  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(model, "_decode", lambda batch, *rest: computed.append(len(batch)) or decode(batch, *rest))
    groups(model, requests, done=[reply.id for reply in first])
    assert computed == [8, 8]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "lanes must leave torch's threads as they were"
    assert asyncio.run(asyncio.to_thread(torch.get_num_threads)) == 3, "in threads that start later too"
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_at_a_time_give_what_one_after_another_gives(
    directory: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    torch.set_num_threads(1)
    expected = groups(LocalModel(str(directory), batch_size=7, dtype=dtype), questions(60))
    torch.set_num_threads(3)
    model = LocalModel(str(directory), batch_size=7, dtype=dtype)
    meeting = threading.Barrier(3)
    decode = model._decode  # pyright: ignore[reportPrivateUsage]

    def met(*args: Any) -> list[list[int]]:
        meeting.wait(timeout=60)
        assert torch.get_num_threads() == 1
        return decode(*args)

    monkeypatch.setattr(model, "_decode", met)
    assert groups(model, questions(60)) == expected
    assert groups(model, questions(60), done=[reply.id for group in expected[:3] for reply in group]) == expected[3:]


@pytest.mark.usefixtures("three_threads")
def test_lanes_share_weights_but_no_module(directory: Path) -> None:
    model = LocalModel(str(directory))
    lanes = [model._models.get() for _ in range(3)]  # pyright: ignore[reportPrivateUsage]
    assert model._models.empty()  # pyright: ignore[reportPrivateUsage]
    assert len({id(module) for lane in lanes for module in lane.modules()}) == 3 * len(list(lanes[0].modules()))
    for weights in zip(*(lane.parameters() for lane in lanes), strict=True):
        assert len({weight.data_ptr() for weight in weights}) == 1


@pytest.mark.usefixtures("three_threads")
def test_a_large_model_answers_one_batch_at_a_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SMALL", 1)
    model = LocalModel(str(directory), batch_size=7)
    busy = threading.Lock()
    decode = model._decode  # pyright: ignore[reportPrivateUsage]

    def alone(*args: Any) -> list[list[int]]:
        assert busy.acquire(blocking=False) and torch.get_num_threads() == 3
        try:
            return decode(*args)
        finally:
            busy.release()

    monkeypatch.setattr(model, "_decode", alone)
    assert len(groups(model, questions(30))) == 5


@pytest.mark.usefixtures("three_threads")
def test_batches_before_one_that_fails_are_yielded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(str(directory), batch_size=8)
    expected = groups(model, questions(64))
    decode = model._decode  # pyright: ignore[reportPrivateUsage]

    def breaks(batch: Any, *rest: Any) -> list[list[int]]:
        if batch[0].request.id == expected[2][0].id:
            raise FloatingPointError("not finite")
        return decode(batch, *rest)

    monkeypatch.setattr(model, "_decode", breaks)
    came: list[list[Reply]] = []

    async def gather() -> None:
        async for group in model.generate(questions(64), SAMPLING):
            came.append(group)

    with pytest.raises(RunFailed, match="not finite"):
        asyncio.run(gather())
    assert came == expected[:2]


@pytest.mark.parametrize("read_tokens", [1, 60])
def test_prompts_read_some_rows_at_a_time_are_prompts_read_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch, read_tokens: int
) -> None:
    model, tokenizer = plain(directory)
    prompts = [local._Prompt(asked, prompt_ids(tokenizer, asked), 8) for asked in questions(15)]  # pyright: ignore[reportPrivateUsage]
    input_ids, mask = local._left_padded(prompts)  # pyright: ignore[reportPrivateUsage]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    monkeypatch.setattr(local, "READ_TOKENS", read_tokens)
    with torch.inference_mode():
        cache, logits = local._read(model, input_ids, mask, positions)  # pyright: ignore[reportPrivateUsage]
        whole = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True)
    torch.testing.assert_close(logits, whole.logits[:, -1])
    seen = mask.bool()[:, None, :, None]
    for ours, theirs in zip(cache.layers, whole.past_key_values.layers, strict=True):
        for name in ("keys", "values"):
            torch.testing.assert_close(getattr(ours, name) * seen, getattr(theirs, name) * seen)


def test_cancelling_stops_at_the_next_token(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(str(directory))
    steps = 0
    real = local.sample

    async def cancelled_in_the_third_step() -> None:
        loop = asyncio.get_running_loop()
        task: asyncio.Task[list[list[Reply]]] = asyncio.create_task(everything())

        def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal steps
            steps += 1
            if steps == 3:
                arrived = asyncio.run_coroutine_threadsafe(cancel(task), loop)
                arrived.result()
            return real(*args, **kwargs)

        monkeypatch.setattr(local, "sample", counted)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def cancel(task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def everything() -> list[list[Reply]]:
        return [group async for group in model.generate(questions(50), Sampling(max_new_tokens=100))]

    asyncio.run(cancelled_in_the_third_step())
    assert steps < 6


def test_the_context_caps_the_answer_and_refuses_a_prompt_that_fills_it(exact: LocalModel) -> None:
    wrapping = len(prompt_ids(plain_tokenizer(exact), request("x")))
    fits, full, over = (CONTEXT - wrapping - 3, CONTEXT - wrapping, CONTEXT)
    requests = [request(str(words), *["w1"] * words) for words in (2, fits, full, over)]
    answered = replies(exact, requests, Sampling(temperature=0, max_new_tokens=10))
    assert len(answered[str(fits)].token_ids or ()) <= 3
    for words in (full, over):
        reply = answered[str(words)]
        assert (reply.finish_reason, reply.text, reply.token_ids) == ("error", "", None)
        assert f"{words + wrapping} tokens" in reply.error and str(CONTEXT) in reply.error
    refused_again = groups(exact, requests, done=["2", str(fits), str(full)])
    assert [[reply.id for reply in group] for group in refused_again] == [[str(over)]]


def test_a_prompt_that_is_too_long_is_told_by_its_reply_alone(
    exact: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda *texts: said.append(texts[0]))
    monkeypatch.setattr(exact, "_tokenizer", tokenizer := plain_tokenizer(exact))
    tokenizer.model_max_length = CONTEXT
    replies(exact, [request("over", *["w1"] * CONTEXT)])
    assert said == []
    tokenizer(["w1 " * 2 * CONTEXT])
    assert said  # what it would have said


def plain_tokenizer(model: LocalModel) -> Any:
    return AutoTokenizer.from_pretrained(model.name)


def test_a_row_without_room_does_not_shorten_or_break_its_neighbours(exact: LocalModel) -> None:
    long = request("long", *["w1"] * (CONTEXT - 10))
    short = request("short", "w2")
    together = replies(exact, [long, short], Sampling(temperature=0.9, max_new_tokens=120))
    assert together["short"] == replies(exact, [short], Sampling(temperature=0.9, max_new_tokens=120))["short"]


def test_messages_that_the_template_refuses_are_an_error_of_that_request_alone(exact: LocalModel) -> None:
    answered = replies(exact, [request("bad", "w1", role="system"), request("good", "w1")])
    assert answered["bad"].finish_reason == "error" and "no system messages" in answered["bad"].error
    assert answered["good"].finish_reason != "error"


def test_thinking_reaches_the_template(directory: Path) -> None:
    asked = request("a", "w1")
    prompts = [
        LocalModel(str(directory), enable_thinking=thinking).render(asked.messages) for thinking in (False, True)
    ]
    assert prompts == ["<start> user w1 <end> <start> assistant w0", "<start> user w1 <end> <start> assistant"]


def test_no_requests_no_groups(exact: LocalModel) -> None:
    assert groups(exact, []) == []


def test_weights_that_give_nan_stop_the_run(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    model.save_pretrained(directory)
    with pytest.raises(RunFailed, match="not finite"):
        groups(LocalModel(str(directory)), questions(3))


def test_the_name_is_the_path_or_what_it_is_called(directory: Path) -> None:
    assert LocalModel(str(directory)).name == str(directory)
    assert LocalModel(str(directory), name="student").name == "student"


def test_a_closed_model_is_gone(directory: Path) -> None:
    model = LocalModel(str(directory))
    model.close()
    with pytest.raises(AttributeError):
        groups(model, questions(1))


def without_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    save_tokenizer(directory, None)


def without_a_weight(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def without_ends(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{}")
    save_tokenizer(directory, TEMPLATE)
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({k: v for k, v in settings.items() if not k.startswith("eos_token")}))


def torn_weights(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def torn_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (shutil.rmtree, "no such model directory"),
        (without_template, "no chat template"),
        (without_a_weight, "weights are missing.*up_proj"),
        (without_ends, "no end-of-turn token"),
        (torn_weights, "not a model"),
        (torn_tokenizer, "no tokenizer"),
        (no_config, "no.* transformers can load"),
    ],
)
def test_a_directory_that_is_no_student_is_one_line(
    directory: Path, tmp_path: Path, breaking: Callable[[Path], object], said: str
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(directory, broken)
    breaking(broken)
    with pytest.raises(UserError, match=said) as raised:
        LocalModel(str(broken))
    assert str(broken) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong", [{"device": "tpu9"}, {"device": "meta"}, {"dtype": "int8"}, {"dtype": "nonsense"}, {"batch_size": 0}]
)
def test_wrong_settings_are_one_line(directory: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        LocalModel(str(directory), **wrong)


def test_a_continuation_keeps_the_space_before_its_first_word() -> None:
    backend = Tokenizer(BPE(vocab={"\u2581": 0, "a": 1, "b": 2, ".": 3}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer.encode("a. b", add_special_tokens=False)
    cut = ids.index(3) + 1
    assert tokenizer.decode(ids[cut:]) == "b"  # what was lost
    assert decoded(tokenizer, ids[cut:], ids[:cut]) == " b" and decoded(tokenizer, ids) == "a. b"
