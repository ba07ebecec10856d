"""What is served on this machine: models by Ollama or the API of OpenAI, containers by Docker."""

import asyncio
import ipaddress
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

QUERY_TIMEOUT_SECONDS = 3.0
CONNECT_TIMEOUT_SECONDS = 1.0
MAX_BYTES = 1024 * 1024
MAX_MODELS = 256
MAX_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class DiscoveredService:
    """An entry of `capabilities.services`, and those of `capabilities.models` that come with it."""

    service: dict[str, Any]
    models: tuple[dict[str, Any], ...] = ()


class UnreadableAnswerError(Exception):
    """Somebody is there, but gave no answer that could be read, e.g. because it is busy."""


async def find_service(address: str, local_ip: str | None) -> DiscoveredService | None:
    """None when nobody is there, or nobody who is known. Takes some seconds at most.

    `address` is unix:///path of Docker, or that of an HTTP server. One on a loopback address is
    told with the `endpoint` at which others reach it, if it listens at `local_ip` too. Raises
    UnclearError.
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
    """JSON; None when the answer is that there is nothing of the kind."""
    transport = httpx.AsyncHTTPTransport(uds=socket, verify=_load_authorities())
    # Proxies of the environment are for what is outside.
    async with (
        httpx.AsyncClient(
            transport=transport, trust_env=False, timeout=QUERY_TIMEOUT_SECONDS
        ) as client,
        # Compressed, a little could become too much before it is seen.
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
    """Read once: it takes longer than all the rest."""
    return ssl.create_default_context()


async def _find_endpoint(base: str, local_ip: str | None) -> str | None:
    """None when others cannot reach it."""
    url = urlsplit(base)
    if not _is_loopback(url.hostname or ""):
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_docker(body: object) -> DiscoveredService | None:
    """Of GET /version."""
    match body:
        case {"ApiVersion": str(_), "Version": str(version)} if _is_valid_name(version):
            return DiscoveredService({"name": "docker", "version": version})
    return None


def parse_models(body: object) -> DiscoveredService | None:
    """Of Ollama's GET /api/tags, and of GET /v1/models. None for anything else.

    llama.cpp answers the first with both, and is none of Ollama's.
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
    """By name: some servers put those first that were used last, which is no change."""
    models = {entry["name"]: entry for entry in entries if entry and _is_valid_name(entry["name"])}
    first = sorted(models.values(), key=lambda entry: str(entry["name"]))[:MAX_MODELS]
    return DiscoveredService(
        {"name": service_name}, tuple({**entry, "service": service_name} for entry in first)
    )


def _is_valid_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable()


def add_endpoint(service: DiscoveredService, endpoint: str) -> DiscoveredService:
    return DiscoveredService({**service.service, "endpoint": endpoint}, service.models)
