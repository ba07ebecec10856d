"""The discovery of services on a machine, with small servers on ports and on a Unix socket."""

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

# The answers of Ollama 0.5 and vLLM 0.8.
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
class ServiceStub:
    """A server with an answer per path: JSON, bytes, a status, HANG or ENDLESS."""

    answers: dict[str, Any]
    address: str = ""
    requests: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            self.requests.append(path)
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
async def run_service(
    answers: dict[str, Any], *, path: Path | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[ServiceStub]:
    stub = ServiceStub(answers)
    if path:
        server = await asyncio.start_unix_server(stub.serve, path)
        stub.address = f"unix://{path}"
    else:
        server = await asyncio.start_server(stub.serve, host)
        stub.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stub
    finally:
        server.close()
        await asyncio.sleep(0)


async def test_ollama_is_found_with_its_models_and_their_details() -> None:
    async with run_service({"/api/tags": TAGS}) as stub:
        result = await find_service(stub.address, None)
    assert result == DiscoveredService(
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


async def test_vllm_is_found_with_the_context_size_of_its_models() -> None:
    async with run_service({"/v1/models": VLLM}) as stub:
        result = await find_service(stub.address, None)
        assert stub.requests == ["/api/tags", "/v1/models"]
    assert result is not None
    assert result.service == {"name": "vllm"}
    assert result.models == (
        {
            "name": "meta-llama/Llama-3.1-8B-Instruct",
            "contextTokens": 131072,
            "service": "vllm",
        },
    )


async def test_server_with_both_apis_is_recognised_as_an_openai_server() -> None:
    both = {"models": [{"name": "a.gguf"}], "object": "list", "data": [{"id": "a.gguf"}]}
    unknown = {"error": "Unexpected endpoint or method. (GET /api/tags)"}
    async with run_service({"/api/tags": both}) as stub:
        llama_cpp = await find_service(stub.address, None)
    async with run_service({"/api/tags": unknown, "/v1/models": {"data": []}}) as stub:
        lm_studio = await find_service(stub.address, None)
    assert llama_cpp == DiscoveredService(
        {"name": "openai"}, ({"name": "a.gguf", "service": "openai"},)
    )
    assert lm_studio == DiscoveredService({"name": "openai"})


async def test_docker_is_found_by_its_socket(tmp_path: Path) -> None:
    async with run_service({"/version": DOCKER}, path=tmp_path / "docker.sock") as stub:
        assert await find_service(stub.address, None) == DiscoveredService(
            {"name": "docker", "version": "28.2.2"}
        )
    assert await find_service(f"unix://{tmp_path / 'none.sock'}", None) is None


async def test_service_has_an_endpoint_only_if_others_can_reach_it() -> None:
    # All of 127/8 is this machine: 127.0.0.2 stands for its address in the network.
    external_address = "127.0.0.2"
    async with run_service({"/api/tags": TAGS}, host="0.0.0.0") as stub:  # noqa: S104  # reachable
        reachable = await find_service(stub.address, external_address)
    async with run_service({"/api/tags": TAGS}) as local_stub:
        unreachable = await find_service(local_stub.address, external_address)
    assert reachable is not None
    assert unreachable is not None
    assert reachable.service["endpoint"] == stub.address.replace("127.0.0.1", external_address)
    assert "endpoint" not in unreachable.service


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
async def test_another_program_on_the_port_is_not_a_service(answers: dict[str, Any]) -> None:
    async with run_service(answers) as stub:
        assert await find_service(stub.address, None) is None
    assert await find_service(stub.address, None) is None  # nothing listens there any more


@pytest.mark.parametrize("answer", [500, 503, HANG, ENDLESS, b" " * (services.MAX_BYTES + 1)])
async def test_busy_server_or_too_long_answer_is_unreadable(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "QUERY_TIMEOUT_SECONDS", 0.3)
    async with run_service({"/api/tags": answer}) as stub:
        with pytest.raises(UnreadableAnswerError):
            await find_service(stub.address, None)


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
def test_any_answer_gives_capabilities_that_the_registry_accepts(answer: Any) -> None:
    result = services.parse_models(answer)
    for model in result.models if result else ():
        assert re.fullmatch(r".{1,255}", model["name"])
        assert model["name"].isprintable()
        json.dumps(model, allow_nan=False)
    services.parse_docker(answer)


@dataclass
class Time:
    now: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now)


def make_discovery(addresses: Iterable[str], time: Time | None = None) -> Discovery:
    clock = (time or Time()).clock
    watch = GpuWatch(lambda: [Gpu("A", memory_total_mb=1024.0)], clock)
    return Discovery(tuple(addresses), clock=clock, gpus=watch)


async def test_capabilities_contain_the_discovered_services(tmp_path: Path) -> None:
    async with (
        run_service({"/api/tags": TAGS}) as ollama,
        run_service({"/version": DOCKER}, path=tmp_path / "docker.sock") as engine,
        run_service({}) as other,
    ):
        discovery = make_discovery([ollama.address, other.address, engine.address])
        async with discovery.watch():
            capabilities = discovery.collect_capabilities()
    assert [model["name"] for model in capabilities["models"]] == ["llama3:8b", "qwen2.5:32b"]
    assert capabilities["services"] == [{"name": "ollama"}, {"name": "docker", "version": "28.2.2"}]
    assert capabilities["devices"] == [{"kind": "gpu", "name": "A", "memoryMb": 1024}]


async def test_busy_server_is_kept_for_a_while_and_one_that_stopped_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "QUERY_TIMEOUT_SECONDS", 0.3)
    time = Time()
    async with run_service({"/api/tags": TAGS}) as ollama:
        discovery = make_discovery([ollama.address], time)
        await discovery.refresh()
        served = discovery.collect_capabilities()
        ollama.answers["/api/tags"] = 503
        time.now += MAX_SILENCE_SECONDS - 1
        await discovery.refresh()
        assert discovery.collect_capabilities() == served
        time.now += 1
        await discovery.refresh()
        assert discovery.collect_capabilities()["services"] == []
        ollama.answers["/api/tags"] = TAGS
        await discovery.refresh()
        assert discovery.collect_capabilities() == served
    await discovery.refresh()
    assert discovery.collect_capabilities()["models"] == []


async def test_another_order_of_the_models_is_not_a_change() -> None:
    async with run_service({"/api/tags": TAGS}) as ollama:
        discovery = make_discovery([ollama.address])
        with capture_logs() as logs:
            await discovery.refresh()
            before = discovery.collect_capabilities()
            ollama.answers["/api/tags"] = {"models": TAGS["models"][::-1]}
            await discovery.refresh()
            assert discovery.collect_capabilities() == before
    assert [entry["event"] for entry in logs] == ["services.changed"]


async def test_capabilities_stay_below_the_size_limit_of_the_registry() -> None:
    tags = {"models": [{"name": f"{n:03}" + "ж" * 250} for n in range(services.MAX_MODELS + 50)]}
    async with run_service({"/api/tags": tags}) as ollama:
        discovery = make_discovery([ollama.address])
        await discovery.refresh()
    capabilities = discovery.collect_capabilities()
    assert len(json.dumps(capabilities)) <= MAX_BYTES
    assert capabilities["models"][0]["name"].startswith("000")
    assert len(capabilities["models"]) > 10


@pytest.mark.parametrize("owner", [[], {}, None, 1])
async def test_invalid_owner_of_a_model_is_ignored(owner: object) -> None:
    async with run_service({"/v1/models": {"data": [{"id": "m", "owned_by": owner}]}}) as stub:
        result = await find_service(stub.address, None)
    assert result == DiscoveredService({"name": "openai"}, ({"name": "m", "service": "openai"},))


async def test_invalid_address_does_not_affect_the_start_or_the_other_services() -> None:
    invalid_address = "http://ü..x"  # the settings accept it, but httpx cannot parse its host
    async with run_service({"/api/tags": TAGS}) as ollama:
        discovery = make_discovery([invalid_address, ollama.address])
        with capture_logs() as logs:
            async with discovery.watch():
                assert discovery.collect_capabilities()["services"] == [{"name": "ollama"}]
    assert [entry["address"] for entry in logs if entry["event"] == "service_query.failed"] == [
        invalid_address
    ]


async def test_discovery_repeats_until_it_is_closed_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    has_repeated = asyncio.Event()
    sleep_count = 0

    async def sleep(_seconds: float) -> None:
        nonlocal sleep_count
        sleep_count += 1
        time.now += 1
        if sleep_count > 100:
            has_repeated.set()
        await asyncio.sleep(0)

    time = Time()
    clock = Clock(now=lambda: time.now, sleep=sleep)
    async with run_service({"/api/tags": TAGS}) as ollama:
        discovery = Discovery((ollama.address,), clock=clock, gpus=GpuWatch(list, clock))
        async with discovery.watch(), asyncio.timeout(5):
            await has_repeated.wait()
            assert len(ollama.requests) >= 3
    assert {task for task in asyncio.all_tasks() - before if "serve" not in repr(task)} == set()
