"""The services of this machine: models of Ollama or of an OpenAI-compatible API, and Docker."""

import asyncio
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from agent.settings import is_loopback

QUERY_TIMEOUT_SECONDS = 3.0
CONNECT_TIMEOUT_SECONDS = 1.0
MAX_BYTES = 1024 * 1024
MAX_MODELS = 256
MAX_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class DiscoveredService:
    """An entry of `capabilities.services` and its entries of `capabilities.models`."""

    service: dict[str, Any]
    models: tuple[dict[str, Any], ...] = ()


class UnreadableAnswerError(Exception):
    """A server listens, but gave no readable answer, e.g. because it is busy."""


async def find_service(address: str, local_ip: str | None) -> DiscoveredService | None:
    """Return the service at the address, None if no known one listens there.

    `address` is unix:///path for Docker, or the URL of an HTTP server. A server on a loopback
    address gets the `endpoint` at which other machines reach it, if it listens on `local_ip` too.

    Raises: UnreadableAnswerError: the answer is an error, too long or takes over three seconds.
    """
    try:
        async with asyncio.timeout(QUERY_TIMEOUT_SECONDS):
            if address.startswith("unix://"):
                return parse_docker(
                    await _fetch_json(urlsplit(address).path, "http://docker/version")
                )
            return await _find_models(address, local_ip)
    except TimeoutError:
        raise UnreadableAnswerError(f"no answer within {QUERY_TIMEOUT_SECONDS:g} s") from None
    except httpx.ConnectError:
        return None
    except httpx.HTTPError as error:
        raise UnreadableAnswerError(str(error) or type(error).__name__) from None


async def _find_models(address: str, local_ip: str | None) -> DiscoveredService | None:
    base = address.rstrip("/")
    for path in ("/api/tags", "/v1/models"):
        service = parse_models(await _fetch_json(None, base + path))
        if service is not None:
            endpoint = await _find_endpoint(base, local_ip)
            return service if endpoint is None else add_endpoint(service, endpoint)
    return None


async def _fetch_json(socket: str | None, url: str) -> object:
    """Return the JSON at the URL; None for a client error or a body that is not JSON."""
    transport = httpx.AsyncHTTPTransport(uds=socket, verify=_load_authorities())
    # The environment's proxies are for the outside world.
    async with (
        httpx.AsyncClient(
            transport=transport, trust_env=False, timeout=QUERY_TIMEOUT_SECONDS
        ) as client,
        # A small compressed body could exceed the limit before it can be checked.
        client.stream("GET", url, headers={"accept-encoding": "identity"}) as response,
    ):
        if response.is_server_error:
            raise UnreadableAnswerError(f"HTTP {response.status_code}")
        if not response.is_success:
            return None
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > MAX_BYTES:
                raise UnreadableAnswerError(f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


@cache
def _load_authorities() -> ssl.SSLContext:
    """Return the default TLS context, loaded once because that is slow."""
    return ssl.create_default_context()


async def _find_endpoint(base: str, local_ip: str | None) -> str | None:
    """Return the URL at which other machines reach the server, None if they cannot."""
    url = urlsplit(base)
    if not is_loopback(base):
        return base
    if local_ip is None:
        return None
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(local_ip, port)
    except (OSError, TimeoutError):
        return None
    writer.close()
    host = f"[{local_ip}]" if ":" in local_ip else local_ip
    return url._replace(netloc=f"{host}:{port}").geturl()


def parse_docker(body: object) -> DiscoveredService | None:
    """Return the service in Docker's answer to GET /version."""
    match body:
        case {"ApiVersion": str(_), "Version": str(version)} if _is_valid_name(version):
            return DiscoveredService({"name": "docker", "version": version})
    return None


def parse_models(body: object) -> DiscoveredService | None:
    """Return the service in an answer to Ollama's GET /api/tags or to GET /v1/models, else None.

    llama.cpp answers the first with both `data` and `models`, and is not Ollama.
    """
    match body:
        case {"data": list(entries)}:
            owners = [entry.get("owned_by") for entry in entries if isinstance(entry, dict)]
            name = "vllm" if "vllm" in owners else "openai"
            return _build_service(name, [_parse_openai_model(entry) for entry in entries])
        case {"models": list(entries)}:
            return _build_service("ollama", [_parse_ollama_model(entry) for entry in entries])
    return None


def _parse_ollama_model(entry: object) -> dict[str, Any] | None:
    match entry:
        case {"name": str(name), **rest}:
            value = rest.get("details")
            details = value if isinstance(value, dict) else {}
            facts = {
                "parameters": details.get("parameter_size"),
                "quantization": details.get("quantization_level"),
            }
            return {"name": name, **{k: v for k, v in facts.items() if _is_valid_name(v)}}
    return None


def _parse_openai_model(entry: object) -> dict[str, Any] | None:
    match entry:
        case {"id": str(name), "max_model_len": int(tokens)} if 1 < tokens < 2**53:  # true is 1
            return {"name": name, "contextTokens": tokens}
        case {"id": str(name)}:
            return {"name": name}
    return None


def _build_service(
    service_name: str, entries: Sequence[dict[str, Any] | None]
) -> DiscoveredService:
    """Return the service with its models by name: some servers list the last used ones first."""
    models = {entry["name"]: entry for entry in entries if entry and _is_valid_name(entry["name"])}
    first = sorted(models.values(), key=lambda entry: str(entry["name"]))[:MAX_MODELS]
    return DiscoveredService(
        {"name": service_name}, tuple({**entry, "service": service_name} for entry in first)
    )


def _is_valid_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable()


def add_endpoint(service: DiscoveredService, endpoint: str) -> DiscoveredService:
    return DiscoveredService({**service.service, "endpoint": endpoint}, service.models)
