"""The source of a request: its addresses, and the scheme and host that its client used.

Headers that forward these count only from the networks in NODE_REGISTRY_TRUSTED_PROXIES: Forwarded
(RFC 7239), or X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from graph.core.headers import get_header
from graph.core.settings import TrustedNetworks

MAX_HOPS = 16
MAX_HEADER_CHARACTERS = 2048
"""The last hops and characters of a forwarding header that are read."""

_MAX_ADDRESS_CHARACTERS = 45

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_KEY = "node_registry.source"
_WHITE_SPACE = " \t"
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_WITH_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+)(?::[0-9]{1,5})?", re.ASCII)
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://(.+)", re.IGNORECASE)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # a token of RFC 9110
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# Searched from the end, so that nothing which a client put before a proxy's element affects it.
_LAST_ELEMENT = re.compile(rf'(?:^|,)((?:[^",]|{_QUOTED})*+)$')
_PAIR = re.compile(rf"[ \t]*({_TOKEN})=({_TOKEN}|{_QUOTED})[ \t]*(?:;|$)")


@dataclass(frozen=True, slots=True)
class RequestSource:
    """Where a request comes from.

    `peer` is the IP address of the direct connection, and `address` that of the client: the same
    unless a trusted proxy forwarded another. `scheme` is http or https, None if unknown; `host` is
    the host with its port, as the client used it.
    """

    peer: str
    address: str
    scheme: str | None
    host: str | None


class _Hop(NamedTuple):
    """What a proxy says of whoever connected to it; None for what it does not say."""

    client: str | None
    scheme: str | None
    host: str | None


class ForwardedMiddleware:
    """Determines the source of each request once, for `get_source`."""

    def __init__(self, app: ASGIApp, trusted_proxies: TrustedNetworks) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            source = scope[_KEY] = find_source(scope, self._trusted_proxies)
            if scope["type"] == "http":
                scope["scheme"] = source.scheme  # Starlette's redirects have it
        await self._app(scope, receive, send)


def get_source(scope: Scope) -> RequestSource:
    """Return the source of a request, by the connection alone if no proxy is trusted."""
    source: RequestSource | None = scope.get(_KEY)
    return find_source(scope, ()) if source is None else source


def find_source(scope: Scope, trusted_proxies: TrustedNetworks) -> RequestSource:
    """Return the source of a request, by its headers if its peer is in a trusted network.

    The client's address is the rightmost forwarded one that is not in a trusted network. If that is
    not an IP address, or all are trusted, or the two families of headers differ, it is the peer's:
    a proxy that sets one of them passes on the other as the client sent it.
    """
    client = scope.get("client")
    peer = _normalize_address(str(client[0]).partition("%")[0]) if client else ""
    scheme = _SCHEMES.get(scope.get("scheme", ""))
    host = get_header(scope, b"host")
    if not trusted_proxies or not _is_trusted(parse_address(peer), trusted_proxies):
        return RequestSource(peer, peer, scheme, host)
    families = [
        _resolve(hops, trusted_proxies)
        for hops in (_read_forwarded(scope), _read_x_forwarded(scope))
        if hops
    ]
    return RequestSource(
        peer,
        _agree(family.client for family in families) or peer,
        _agree(family.scheme for family in families) or scheme,
        _agree(family.host for family in families) or host,
    )


def parse_address(text: str) -> IPAddress | None:
    """Return the IP address of a text such as 192.0.2.1:80, 2001:db8::1 or [2001:db8::1]:80.

    An IPv6 address that maps an IPv4 address becomes that one. None if it is no address.
    """
    text = text.strip(_WHITE_SPACE)
    if match := _WITH_PORT.fullmatch(text):
        text = match[1].strip("[]")
    if len(text) > _MAX_ADDRESS_CHARACTERS or "%" in text:  # a zone has a meaning there alone
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_same_origin(origin: str, source: RequestSource) -> bool:
    """Return whether an Origin header names the scheme, host and port that the client used.

    A port that is left out is the scheme's default. Where the scheme of the request is unknown, the
    origin's counts.
    """
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False
    scheme = match[1].lower()
    page = _parse_authority(match[2], scheme)
    return (
        page is not None
        and source.scheme in {None, scheme}
        and page == _parse_authority(source.host or "", scheme)
    )


def _parse_authority(text: str, scheme: str) -> tuple[str, int] | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    return match[1].lower(), int(match[2] or _DEFAULT_PORTS[scheme])


@lru_cache(maxsize=4096)
def _normalize_address(text: str) -> str:
    address = parse_address(text)
    return text if address is None else str(address)


def _is_trusted(address: IPAddress | None, trusted_proxies: TrustedNetworks) -> bool:
    return address is not None and any(address in network for network in trusted_proxies)


def _resolve(hops: Sequence[_Hop], trusted_proxies: TrustedNetworks) -> _Hop:
    """Return the hop of the client, whose `client` is None if it is no IP address.

    `hops` are the last first; those of trusted proxies are passed over.
    """
    for hop in hops:
        address = parse_address(hop.client or "")
        if address is None:
            return hop._replace(client=None)
        if not _is_trusted(address, trusted_proxies):
            return hop._replace(client=str(address))
    return hops[-1]._replace(client=None)


def _agree(values: Iterable[str | None]) -> str | None:
    """Return the value on which all families of headers agree, None if they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _read_x_forwarded(scope: Scope) -> list[_Hop]:
    """Return the hops of the X-Forwarded headers, the last first.

    A header with fewer values than hops was set by the first proxy that sets it.
    """
    clients = _read_values(scope, b"x-forwarded-for")
    schemes = [_check_scheme(value) for value in _read_values(scope, b"x-forwarded-proto")]
    hosts = [_check_host(value) for value in _read_values(scope, b"x-forwarded-host")]
    count = len(clients) or bool(schemes or hosts)
    return [
        _Hop(
            clients[i] if clients else None,
            schemes[min(i, len(schemes) - 1)] if schemes else None,
            hosts[min(i, len(hosts) - 1)] if hosts else None,
        )
        for i in range(count)
    ]


def _read_forwarded(scope: Scope) -> list[_Hop]:
    """Return the hops of the Forwarded header, the last first, up to one that is malformed."""
    text = _read_end(scope, b"forwarded")
    hops: list[_Hop] = []
    while text and len(hops) < MAX_HOPS:
        match = _LAST_ELEMENT.search(text)
        pairs = None if match is None else _parse_element(match[1])
        if match is None or pairs is None:
            return [*hops, _Hop(None, None, None)]
        scheme, host = _check_scheme(pairs.get("proto", "")), _check_host(pairs.get("host", ""))
        hops.append(_Hop(pairs.get("for"), scheme, host))
        text = text[: match.start()]
    return hops


def _parse_element(text: str) -> dict[str, str] | None:
    """Return the parameters of an element such as for="[2001:db8::1]:80";proto=https."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None or match[1].lower() in pairs:
            return None
        value = match[2]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        pairs[match[1].lower()] = value
        position = match.end()
    return pairs


def _read_values(scope: Scope, name: bytes) -> list[str]:
    """Return the values of a header, the last first."""
    text = _read_end(scope, name)
    values = (
        [value.strip(_WHITE_SPACE) for value in text.rsplit(",", MAX_HOPS)[-MAX_HOPS:]]
        if text
        else []
    )
    return values[::-1]


def _read_end(scope: Scope, name: bytes) -> str:
    """Return the end of a header; "?", which is no address, stands for what is left out."""
    text = get_header(scope, name) or ""
    if len(text) <= MAX_HEADER_CHARACTERS:
        return text
    _, comma, end = text[-MAX_HEADER_CHARACTERS:].partition(",")
    return f"?{comma}{end}"


def _check_scheme(value: str) -> str | None:
    return _SCHEMES.get(value.lower())


def _check_host(value: str) -> str | None:
    return value if _AUTHORITY.fullmatch(value) else None
