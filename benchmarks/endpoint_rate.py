"""How many requests a second `EndpointModel` gets through, beside the bare openai SDK; and what faults cost.

    python -m benchmarks.endpoint_rate              # both clients, alternating, against a server that answers at once
    python -m benchmarks.endpoint_rate --rectify    # the whole way from rows read to rows committed, ledger included
    python -m benchmarks.endpoint_rate --faults     # 10,000 requests at 512 in flight, a tenth of them with faults

The server (`tests/fault_server.py`) is a process of its own. Rates are medians over the repeats; a machine that does
other things besides makes them waver, so processor time of the client is printed too. With faults the server takes two
seconds for a reply, so that waiting is measured and not the processor (`--delay 0`: both). Markdown on stdout.

What faults allow: the seconds in which nobody was served (storms), plus the tries that the server saw outside of them
at the rate that the same client reached without faults, plus one time-out, since the last request may hang like any.
"""

import argparse
import asyncio
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
from tests.fault_server import A_TENTH, FaultServer

from spot.models.base import Request
from spot.models.endpoint.model import EndpointModel
from spot.schema import Message, Sampling

SYSTEM = "You correct a student's answer. Change as little as you can."
HANG_AFTER = 3.0
"""Seconds, beside the server's delay, after which a try counts as hung."""


def questions(count: int) -> list[str]:
    """Prompts of about the length of a problem with an answer to correct."""
    return [f"{number}. {'x' * 1500}" for number in range(count)]


async def bare(url: str, count: int, concurrency: int) -> None:
    """The SDK as its documentation has it, with as many workers as may be in flight."""
    waiting = iter(questions(count))
    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:

        async def work() -> None:
            for question in waiting:
                reply = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
                    temperature=0.7,
                    top_p=0.8,
                    max_tokens=512,
                    seed=1,
                )
                assert reply.choices[0].message.content

        await asyncio.gather(*(work() for _ in range(concurrency)))


def requests(count: int) -> list[Request]:
    system = Message(role="system", content=SYSTEM)
    return [
        Request(str(number), (system, Message(role="user", content=question)), 1)
        for number, question in enumerate(questions(count))
    ]


async def ours(url: str, count: int, concurrency: int) -> None:
    """`EndpointModel`, from its first request: how many it may have in flight is found out on the way."""
    model = EndpointModel("m", url, concurrency=concurrency)
    answered = 0
    async for replies in model.generate(requests(count), Sampling(max_new_tokens=512)):
        assert all(reply.text for reply in replies)
        answered += len(replies)
    assert answered == count


async def rectified(url: str, count: int, concurrency: int) -> None:
    """The whole way: failures read from a file, prompted, asked through the ledger, verified, committed as rows."""
    from spot.files.store import Appender, read_rows, write_rows
    from spot.models.paid.ledger import Ledger, Prices
    from spot.models.paid.recorded import RecordedModel
    from spot.rectify.base import Failure
    from spot.rectify.model_oracle import ModelOracle
    from spot.rectify.run import rectify
    from spot.schema import Attempt, Problem, Rectification, Verdict
    from spot.verify.resolve import resolve

    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        problems = [Problem(id=f"p{n}", prompt=f"What is {n} + 1?", answer=str(n + 1)) for n in range(count)]
        attempts = [
            Attempt(
                id=f"p{n}#0",
                problem_id=f"p{n}",
                sample=0,
                response=f"{n} and one more. {'x' * 500} \\boxed{{0}}",
                finish_reason="stop",
                verdict=Verdict(correct=False),
                model="m",
            )
            for n in range(count)
        ]
        write_rows(place / "p.jsonl", problems)
        write_rows(place / "a.jsonl", attempts)
        started = time.perf_counter()
        read = {problem.id: problem for problem in read_rows(place / "p.jsonl", Problem)}
        failures = [Failure(read[row.problem_id], row) for row in read_rows(place / "a.jsonl", Attempt)]
        model = EndpointModel("m", url, concurrency=concurrency)
        with Ledger(place / "ledger.sqlite") as ledger, Appender(place / "r.jsonl") as appender:
            oracle = ModelOracle(RecordedModel(model, ledger, "rectify", Prices(1, 10)), True, "simplified")
            await rectify(failures, oracle, resolve("math"), appender)
        WHOLE.append(count / (time.perf_counter() - started))
        assert len(read_rows(place / "r.jsonl", Rectification)) == count


WHOLE: list[float] = []
"""Rates of `rectified`, from reading the first row to the last committed one."""


def whole(count: int, concurrencies: list[int], repeats: int) -> None:
    """One row a concurrency: the bare SDK beside all that rectification does."""
    print(f"{count} corrections, {repeats} repeats, {machine()}\n")
    print("| in flight | bare SDK, a second | rows committed, a second | ratio | (range) |")
    print("| --- | --- | --- | --- | --- |")
    with FaultServer() as server:
        timed(rectified, server.url, 100, 8)  # starts the verifier's processes
        for concurrency in concurrencies:
            pairs: list[tuple[float, float]] = []
            for _ in range(repeats):
                theirs = timed(bare, server.url, count, concurrency)[0]
                timed(rectified, server.url, count, concurrency)
                pairs.append((theirs, WHOLE[-1]))
            rates = [statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
            ratios = sorted(mine / theirs for theirs, mine in pairs)
            print(
                f"| {concurrency} | {rates[0]:.0f} | {rates[1]:.0f} | **{statistics.median(ratios):.2f}x** | "
                f"{ratios[0]:.2f}-{ratios[-1]:.2f} |",
                flush=True,
            )


def timed(client: Callable[[str, int, int], Awaitable[None]], url: str, count: int, concurrency: int) -> list[float]:
    """Requests a second, and milliseconds of processor time a request."""
    wall, processor = time.perf_counter(), time.process_time()

    async def run() -> None:
        await client(url, count, concurrency)

    asyncio.run(run())
    return [count / (time.perf_counter() - wall), (time.process_time() - processor) / count * 1e3]


def compare(count: int, concurrencies: list[int], repeats: int) -> None:
    """One row a concurrency: both clients, alternating against the same server."""
    print(f"{count} requests, {repeats} repeats, {machine()}\n")
    print("| in flight | bare SDK, a second | ours, a second | ratio | (range) | bare SDK, ms CPU | ours, ms CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with FaultServer() as server:
        timed(ours, server.url, 100, 8)
        for concurrency in concurrencies:
            pairs = [
                (timed(bare, server.url, count, concurrency), timed(ours, server.url, count, concurrency))
                for _ in range(repeats)
            ]
            rates = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
            costs = [statistics.median(pair[side][1] for pair in pairs) for side in (0, 1)]
            ratios = sorted(mine[0] / theirs[0] for theirs, mine in pairs)
            print(
                f"| {concurrency} | {rates[0]:.0f} | {rates[1]:.0f} | **{statistics.median(ratios):.2f}x** | "
                f"{ratios[0]:.2f}-{ratios[-1]:.2f} | {costs[0]:.2f} | {costs[1]:.2f} |",
                flush=True,
            )


def with_faults(count: int, concurrency: int, seed: int, delay: float) -> None:
    """One run with faults between two without; every request has to end with a reply or a reason."""
    with FaultServer(delay=delay) as clean, FaultServer(A_TENTH, seed=seed, delay=delay) as server:
        timed(ours, clean.url, 100, 100)
        before, _ = timed(ours, clean.url, count, concurrency)
        ends, memory, seconds = asyncio.run(faulty(server.url, count, concurrency, HANG_AFTER + delay))
        stats = server.stats()
        after, _ = timed(ours, clean.url, count, concurrency)
    clean_rate = (before + after) / 2
    served = sum(number for fault, number in stats["tries"].items() if not fault.startswith("storm"))
    allowed = stats["storm_seconds"] + served / clean_rate + HANG_AFTER + delay
    print(f"{count} requests, at most {concurrency} in flight, replies after {delay:g} s, {machine()}\n")
    print("| | |\n| --- | --- |")
    print(f"| ended | {sum(ends.values())} of {count}: {', '.join(f'{end} {n}' for end, n in ends.most_common())} |")
    print(f"| tries | {sum(stats['tries'].values())}: {', '.join(f'{f} {n}' for f, n in stats['tries'].items())} |")
    print(f"| seconds | {seconds:.1f} ({count / seconds:.0f} a second) |")
    print(f"| a second without faults, before and after | {before:.0f}, {after:.0f} |")
    print(f"| what the faults allow | {allowed:.1f}, of which storms {stats['storm_seconds']:.0f} |")
    print(f"| **share of that** | **{allowed / seconds:.0%}** |")
    print(f"| resident MiB at each tenth | {', '.join(f'{amount:.0f}' for amount in memory)} |")
    assert sum(ends.values()) == count, "a request without an end"


async def faulty(url: str, count: int, concurrency: int, timeout: float) -> tuple[Counter[str], list[float], float]:
    """How requests ended, memory after each tenth of them, and the seconds that it took."""
    model = EndpointModel("m", url, concurrency=concurrency, timeout=timeout)
    todo = requests(count)
    ends: Counter[str] = Counter()
    memory = [resident()]
    start = time.perf_counter()
    async for replies in model.generate(todo, Sampling(max_new_tokens=512)):
        ends.update(reply.error or reply.finish_reason for reply in replies)
        if sum(ends.values()) >= len(memory) * count / 10:
            memory.append(resident())
    return ends, memory, time.perf_counter() - start


def resident() -> float:
    """MiB of this process in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def machine() -> str:
    return f"Python {platform.python_version()}, openai {openai.__version__}, {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--rectify", action="store_true")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--concurrency", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=2.0, help="with --faults: seconds until the server replies")
    arguments = parser.parse_args()
    if arguments.faults:
        with_faults(arguments.requests or 10_000, (arguments.concurrency or [512])[0], arguments.seed, arguments.delay)
    elif arguments.rectify:
        whole(arguments.requests or 1_000, arguments.concurrency or [16, 128], arguments.repeats)
    else:
        compare(arguments.requests or 1_000, arguments.concurrency or [1, 16, 128, 512], arguments.repeats)


if __name__ == "__main__":
    sys.exit(main())
