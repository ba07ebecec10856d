"""What is served on a machine, by small servers that really listen, on ports and on a socket."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent import services
from agent.discovery import MAX_BYTES, MAX_SILENCE_SECONDS, Discovery
from agent.gpu import Gpu
from agent.gpu_watch import GpuWatch
from agent.pace import Clock
from agent.services import DiscoveredService, UnreadableAnswerError, find_service

# As Ollama 0.5 and vLLM 0.8 answer.
TAGS = {
    "models": [
        {
            "name": "qwen2.5:32b",
            "model": "qwen2.5:32b",
            "modified_at": "2025-01-17T14:30:00.1+01:00",
            "size": 19851349856,
            "digest": "9f13ba1299afea09d9a956fc6a85becc99115a6d596fae201a5487a03bdc4368",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "qwen2",
                "families": ["qwen2"],
                "parameter_size": "32.8B",
                "quantization_level": "Q4_K_M",
            },
        },
        {"name": "llama3:8b", "size": 1, "details": {"parameter_size": "8.0B"}},
    ]
}
VLLM = {
    "object": "list",
    "data": [
        {
            "id": "meta-llama/Llama-3.1-8B-Instruct",
            "object": "model",
            "created": 1736870400,
            "owned_by": "vllm",
            "root": "meta-llama/Llama-3.1-8B-Instruct",
            "parent": None,
            "max_model_len": 131072,
        }
    ],
}
DOCKER = {
    "Platform": {"Name": "Docker Engine - Community"},
    "Version": "28.2.2",
    "ApiVersion": "1.50",
    "Os": "linux",
    "Arch": "amd64",
}
HANG, ENDLESS = object(), object()


@dataclass
class Here:
    """A server of few paths: what it answers there, as JSON, bytes, a status, HANG or ENDLESS."""

    answers: dict[str, Any]
    address: str = ""
    asked: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            self.asked.append(path)
            answer = self.answers.get(path, 404)
            if answer is HANG:
                await reader.read()
                return
            status = answer if isinstance(answer, int) else 200
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            writer.write(f"HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n".encode())
            while answer is ENDLESS:
                writer.write(b" " * 65536)
                await writer.drain()
            writer.write(text)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(
    answers: dict[str, Any], *, path: Path | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Here]:
    here = Here(answers)
    if path:
        server = await asyncio.start_unix_server(here.serve, path)
        here.address = f"unix://{path}"
    else:
        server = await asyncio.start_server(here.serve, host)
        here.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()
        await asyncio.sleep(0)


async def test_ollama_tells_its_models_and_what_they_are() -> None:
    async with listening({"/api/tags": TAGS}) as here:
        found = await find_service(here.address, None)
    assert found == DiscoveredService(
        {"name": "ollama"},
        (
            {"name": "llama3:8b", "parameters": "8.0B", "service": "ollama"},
            {
                "name": "qwen2.5:32b",
                "parameters": "32.8B",
                "quantization": "Q4_K_M",
                "service": "ollama",
            },
        ),
    )


async def test_vllm_tells_how_much_its_models_can_read() -> None:
    async with listening({"/v1/models": VLLM}) as here:
        found = await find_service(here.address, None)
        assert here.asked == ["/api/tags", "/v1/models"]
    assert found is not None
    assert found.service == {"name": "vllm"}
    assert found.models == (
        {
            "name": "meta-llama/Llama-3.1-8B-Instruct",
            "contextTokens": 131072,
            "service": "vllm",
        },
    )


async def test_server_that_speaks_both_is_taken_for_what_it_is() -> None:
    both = {"models": [{"name": "a.gguf"}], "object": "list", "data": [{"id": "a.gguf"}]}
    unknown = {"error": "Unexpected endpoint or method. (GET /api/tags)"}
    async with listening({"/api/tags": both}) as here:
        llama_cpp = await find_service(here.address, None)
    async with listening({"/api/tags": unknown, "/v1/models": {"data": []}}) as here:
        lm_studio = await find_service(here.address, None)
    assert llama_cpp == DiscoveredService(
        {"name": "openai"}, ({"name": "a.gguf", "service": "openai"},)
    )
    assert lm_studio == DiscoveredService({"name": "openai"})


async def test_docker_is_found_by_its_socket(tmp_path: Path) -> None:
    async with listening({"/version": DOCKER}, path=tmp_path / "docker.sock") as here:
        assert await find_service(here.address, None) == DiscoveredService(
            {"name": "docker", "version": "28.2.2"}
        )
    assert await find_service(f"unix://{tmp_path / 'none.sock'}", None) is None


async def test_service_is_told_with_the_address_at_which_others_reach_it() -> None:
    # All of 127/8 is this machine: here its second address stands for one of the network.
    others = "127.0.0.2"
    async with listening({"/api/tags": TAGS}, host="0.0.0.0") as here:  # noqa: S104  # on purpose
        to_all = await find_service(here.address, others)
    async with listening({"/api/tags": TAGS}) as here_alone:
        to_none = await find_service(here_alone.address, others)
    assert to_all is not None
    assert to_none is not None
    assert to_all.service["endpoint"] == here.address.replace("127.0.0.1", others)
    assert "endpoint" not in to_none.service


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"/api/tags": 401, "/v1/models": 302},
        {"/api/tags": b"<html>", "/v1/models": b"\xff"},
        {"/api/tags": [], "/v1/models": {"data": {}}},
        {"/api/tags": b"[" * 200_000},
        {"/api/tags": {"data": 1}, "/v1/models": b"1" * 5000},
    ],
)
async def test_somebody_else_on_the_port_is_nobody(answers: dict[str, Any]) -> None:
    async with listening(answers) as here:
        assert await find_service(here.address, None) is None
    assert await find_service(here.address, None) is None  # and so is a port that nobody listens on


@pytest.mark.parametrize("answer", [500, 503, HANG, ENDLESS, b" " * (services.MAX_BYTES + 1)])
async def test_server_that_is_busy_or_says_too_much_is_unclear(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "QUERY_TIMEOUT_SECONDS", 0.3)
    async with listening({"/api/tags": answer}) as here:
        with pytest.raises(UnreadableAnswerError):
            await find_service(here.address, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("data", "models", "id", "name", "details", "max_model_len", "owned_by"),
                    *("ApiVersion", "Version"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
)


@settings(max_examples=60)
@given(JSON)
def test_no_answer_can_make_capabilities_that_the_registry_refuses(said: Any) -> None:
    found = services.parse_models(said)
    for model in found.models if found else ():
        assert re.fullmatch(r".{1,255}", model["name"])
        assert model["name"].isprintable()
        json.dumps(model, allow_nan=False)
    services.parse_docker(said)


@dataclass
class Time:
    now: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now)


def surroundings(addresses: Iterable[str], time: Time | None = None) -> Discovery:
    clock = (time or Time()).clock
    watch = GpuWatch(lambda: [Gpu("A", memory_total_mb=1024.0)], clock)
    return Discovery(tuple(addresses), clock=clock, gpus=watch)


async def test_capabilities_are_what_was_found(tmp_path: Path) -> None:
    async with (
        listening({"/api/tags": TAGS}) as ollama,
        listening({"/version": DOCKER}, path=tmp_path / "docker.sock") as engine,
        listening({}) as other,
    ):
        around = surroundings([ollama.address, other.address, engine.address])
        async with around.watch():
            found = around.collect_capabilities()
    assert [model["name"] for model in found["models"]] == ["llama3:8b", "qwen2.5:32b"]
    assert found["services"] == [{"name": "ollama"}, {"name": "docker", "version": "28.2.2"}]
    assert found["devices"] == [{"kind": "gpu", "name": "A", "memoryMb": 1024}]


async def test_busy_server_is_believed_for_a_while_and_one_that_left_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "QUERY_TIMEOUT_SECONDS", 0.3)
    time = Time()
    async with listening({"/api/tags": TAGS}) as ollama:
        around = surroundings([ollama.address], time)
        await around.refresh()
        served = around.collect_capabilities()
        ollama.answers["/api/tags"] = 503
        time.now += MAX_SILENCE_SECONDS - 1
        await around.refresh()
        assert around.collect_capabilities() == served
        time.now += 1
        await around.refresh()
        assert around.collect_capabilities()["services"] == []
        ollama.answers["/api/tags"] = TAGS
        await around.refresh()
        assert around.collect_capabilities() == served
    await around.refresh()
    assert around.collect_capabilities()["models"] == []


async def test_order_in_which_models_are_told_is_no_change() -> None:
    async with listening({"/api/tags": TAGS}) as ollama:
        around = surroundings([ollama.address])
        with capture_logs() as logs:
            await around.refresh()
            before = around.collect_capabilities()
            ollama.answers["/api/tags"] = {"models": TAGS["models"][::-1]}
            await around.refresh()
            assert around.collect_capabilities() == before
    assert [entry["event"] for entry in logs] == ["services.changed"]


async def test_capabilities_never_grow_beyond_what_the_registry_takes() -> None:
    many = {"models": [{"name": f"{n:03}" + "ж" * 250} for n in range(services.MAX_MODELS + 50)]}
    async with listening({"/api/tags": many}) as ollama:
        around = surroundings([ollama.address])
        await around.refresh()
    found = around.collect_capabilities()
    assert len(json.dumps(found)) <= MAX_BYTES
    assert found["models"][0]["name"].startswith("000")
    assert len(found["models"]) > 10


@pytest.mark.parametrize("owner", [[], {}, None, 1])
async def test_odd_owner_of_a_model_is_no_owner(owner: object) -> None:
    async with listening({"/v1/models": {"data": [{"id": "m", "owned_by": owner}]}}) as here:
        found = await find_service(here.address, None)
    assert found == DiscoveredService({"name": "openai"}, ({"name": "m", "service": "openai"},))


async def test_address_that_cannot_be_asked_costs_neither_the_start_nor_the_others() -> None:
    nowhere = "http://ü..x"  # a setting that is taken, of which httpx makes no host
    async with listening({"/api/tags": TAGS}) as ollama:
        around = surroundings([nowhere, ollama.address])
        with capture_logs() as logged:
            async with around.watch():
                assert around.collect_capabilities()["services"] == [{"name": "ollama"}]
    assert [each["address"] for each in logged if each["event"] == "service_query.failed"] == [
        nowhere
    ]


async def test_looking_goes_on_until_it_is_closed_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    looks = asyncio.Event()
    slept = 0

    async def sleep(_seconds: float) -> None:
        nonlocal slept
        slept += 1
        time.now += 1
        if slept > 100:
            looks.set()
        await asyncio.sleep(0)

    time = Time()
    clock = Clock(now=lambda: time.now, sleep=sleep)
    async with listening({"/api/tags": TAGS}) as ollama:
        around = Discovery((ollama.address,), clock=clock, gpus=GpuWatch(list, clock))
        async with around.watch(), asyncio.timeout(5):
            await looks.wait()
            assert len(ollama.asked) >= 3
    assert {task for task in asyncio.all_tasks() - before if "serve" not in repr(task)} == set()
