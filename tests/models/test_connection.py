"""What the environment may and may not do to a request, through the real SDK, and how its faults are told."""

import asyncio
import gzip
import resource
from pathlib import Path

import pytest
from tests.fake_server import Answer, FakeServer, completion

from spot.errors import RunFailed, UserError
from spot.models.base import Reply, Request
from spot.models.endpoint.model import EndpointModel
from spot.schema import Message, Sampling


def answer(url: str, **options: object) -> Reply:
    async def run() -> list[Reply]:
        request = Request("0", (Message(role="user", content="q"),), 1)
        model = EndpointModel("m", url, **options)  # pyright: ignore[reportArgumentType]
        return [reply async for group in model.generate([request], Sampling()) for reply in group]

    (reply,) = asyncio.run(run())
    return reply


AMBIENT = {
    "OPENAI_API_KEY": "ambient-key",
    "OPENAI_ADMIN_KEY": "ambient-admin",
    "OPENAI_ORG_ID": "ambient-org",
    "OPENAI_PROJECT_ID": "ambient-project",
    "OPENAI_WEBHOOK_SECRET": "ambient-webhook",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/ambient",
    "OPENAI_CUSTOM_HEADERS": "X-Ambient: ambient\nAuthorization: Bearer ambient",
}


@pytest.mark.parametrize("key", [None, "sk-own"])
def test_only_what_the_user_names_here_is_sent(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPOT_TEST_KEY", key or "")
    with FakeServer(lambda _: completion("A")) as server:
        own = {"api_key_env": "SPOT_TEST_KEY"} if key else {}
        assert answer(server.url, extra_headers={"OpenAI-Organization": "mine"}, **own).text == "A"
        headers = server.seen[0].headers
    assert not [name for name, value in headers.items() if "ambient" in f"{name} {value}".lower()]
    assert (headers["openai-organization"], "openai-project" in headers) == ("mine", False)
    assert headers["authorization"] == f"Bearer {key or 'none'}"


def test_a_header_that_holds_a_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"extra_headers: 'authorization' cannot be set there; .*api_key_env"):
        EndpointModel("m", "http://127.0.0.1:9/v1", extra_headers={"authorization": "Bearer x"})


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"HTTP_PROXY": "htp://proxy:1"}, r"the proxy in HTTP_PROXY=htp://proxy:1 cannot be used"),
        ({"HTTP_PROXY": "http://me:secret@proxy:notaport"}, r"HTTP_PROXY=proxy:notaport"),
        ({"ALL_PROXY": "socks5://127.0.0.1:1080"}, r"ALL_PROXY=socks5://127.0.0.1:1080 .*socksio"),
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, r"SSL_CERT_FILE=/nowhere/ca.pem cannot be read"),
        ({"SSL_CERT_FILE": "EMPTY"}, r"SSL_CERT_FILE=.*empty.pem cannot be read"),
        ({"SSL_CERT_DIR": "/nowhere"}, r"SSL_CERT_DIR=/nowhere cannot be read"),
    ],
)
def test_a_wrong_environment_is_told_in_one_line(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / "empty.pem") if value == "EMPTY" else value)
    with pytest.raises(UserError, match=told) as error:
        answer("http://127.0.0.1:9/v1")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("status", [200, 500])
def test_a_body_that_never_ends_is_left_at_the_limit(status: int) -> None:
    bomb = gzip.compress(bytes(512 * 2**20), 1)
    answered = Answer(status, bomb, {"Content-Encoding": "gzip"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FakeServer(lambda _: answered) as server, pytest.raises(RunFailed, match="over 64 MiB long, decompressed"):
        answer(server.url)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 * 2**10
