"""Forwarding headers: what counts of them, and only from trusted proxies."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.auth.request_source import (
    MAX_HEADER_CHARACTERS,
    MAX_HOPS,
    RequestSource,
    find_source,
    is_same_origin,
    parse_address,
)
from graph.core.settings import ConfigurationError, Settings, TrustedNetworks, load_settings

PROXIES = Settings(trusted_proxies="10.0.0.0/8, 127.0.0.1, fd00::/8").trusted_proxies
PROXY = "10.0.0.2"

ADDRESSES = st.ip_addresses().filter(lambda address: not address.is_private)
HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)


def make_scope(
    *headers: tuple[str, str], peer: str = PROXY, scheme: str = "http"
) -> dict[str, Any]:
    return {
        "type": "http",
        "scheme": scheme,
        "client": (peer, 4711),
        "headers": [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in (("Host", "registry.internal:9205"), *headers)
        ],
    }


def find_address(*headers: tuple[str, str], peer: str = PROXY) -> str:
    return find_source(make_scope(*headers, peer=peer), PROXIES).address


def for_header(address: object) -> str:
    """Return an address as RFC 7239 writes it."""
    return f'"[{address}]:4711"' if ":" in str(address) else str(address)


def normalize(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@pytest.mark.parametrize("peer", ["192.0.2.1", "11.0.0.1", "::1", "fe80::1"])
def test_headers_of_an_untrusted_peer_do_not_count(peer: str) -> None:
    headers = (
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "for=203.0.113.7;proto=https;host=evil.example"),
    )
    source = find_source(make_scope(*headers, peer=peer), PROXIES)
    assert source == RequestSource(peer, peer, "http", "registry.internal:9205")


def test_no_peer_is_trusted_by_default() -> None:
    trusted = Settings().trusted_proxies
    scope = make_scope(("X-Forwarded-For", "203.0.113.7"), peer="127.0.0.1")
    assert find_source(scope, trusted).address == "127.0.0.1"


@pytest.mark.parametrize("peer", [PROXY, f"::ffff:{PROXY}", "fd00::1", "fd00::1%eth0"])
def test_headers_of_a_trusted_peer_count(peer: str) -> None:
    assert find_address(("X-Forwarded-For", "203.0.113.7"), peer=peer) == "203.0.113.7"


@pytest.mark.parametrize(
    ("header", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:80", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("203.0.113.7, ::ffff:10.9.9.9, 127.0.0.1", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7,10.9.9.9:80", "203.0.113.7"),
        ("10.9.9.9, 127.0.0.1", PROXY),
        ("203.0.113.7, unknown", PROXY),
        ("unknown, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, unknown, 10.9.9.9", PROXY),
        ("203.0.113.07", PROXY),
        ("203.0.113.7.", PROXY),
        ("203.0.113", PROXY),
        ("3405803783", PROXY),
        ("fe80::1%eth0", PROXY),
        ("[203.0.113.7]:80]", PROXY),
        ("203.0.113.7,", PROXY),
        ("reg.example", PROXY),
        ("203.0.113.7\x85", PROXY),
        ("x" * 8100, PROXY),
        ("1" * 100_000, PROXY),
        ("", PROXY),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxys(
    header: str, address: str
) -> None:
    assert find_address(("X-Forwarded-For", header)) == address


@pytest.mark.parametrize(
    ("header", "address"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ('For="203.0.113.7:4711"', "203.0.113.7"),
        ('for="[2001:db8::7]:4711";proto=https', "2001:db8::7"),
        ("for=198.51.100.1, for=203.0.113.7;by=10.0.0.2", "203.0.113.7"),
        ("for=203.0.113.7, for=10.1.1.1", "203.0.113.7"),
        ("proto=https;for=203.0.113.7;", "203.0.113.7"),
        (r'for="203.0.113\.7"', "203.0.113.7"),
        ("for=203.0.113.7, for=unknown", PROXY),
        ("for=203.0.113.7, for=_hidden", PROXY),
        ("for=203.0.113.7, proto=https", PROXY),
        ("for=203.0.113.7;for=198.51.100.1", PROXY),
        ("for = 203.0.113.7", PROXY),
        ("for=2001:db8::7", PROXY),
        ('for="203.0.113.7', PROXY),
        ("203.0.113.7", PROXY),
        ("for=203.0.113.7, ", PROXY),
        ('host="a, for=198.51.100.1;x=";for=203.0.113.7', "203.0.113.7"),
        ('x=", for=203.0.113.7', "203.0.113.7"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_writes_it(header: str, address: str) -> None:
    assert find_address(("Forwarded", header)) == address


@given(HEADER_TEXT, ADDRESSES)
def test_nothing_that_a_client_sends_hides_what_the_proxy_appends_to_x_forwarded_for(
    sent: str, address: Any
) -> None:
    assert find_address(("X-Forwarded-For", f"{sent}, {address}")) == normalize(address)
    split = (("X-Forwarded-For", sent), ("X-Forwarded-For", str(address)))
    assert find_address(*split) == normalize(address)


@given(HEADER_TEXT | st.text('\\",;= =for', max_size=20), ADDRESSES)
def test_nothing_that_a_client_sends_hides_what_the_proxy_appends_to_forwarded(
    sent: str, address: Any
) -> None:
    header = f"{sent}, for={for_header(address)};proto=https"
    assert find_address(("Forwarded", header)) == normalize(address)


@given(HEADER_TEXT, HEADER_TEXT, st.sampled_from([PROXY, "127.0.0.1", "fd00::1"]))
def test_the_address_of_the_client_is_always_an_address(
    x_forwarded_for: str, forwarded: str, peer: str
) -> None:
    headers = (("X-Forwarded-For", x_forwarded_for), ("Forwarded", forwarded))
    source = find_source(make_scope(*headers, peer=peer), PROXIES)
    assert source.peer == peer
    assert str(ipaddress.ip_address(source.address)) == source.address
    assert len(source.host or "") <= len("registry.internal:9205") + len(forwarded)


@given(st.text(max_size=60))
def test_a_text_is_an_address_or_none(text: str) -> None:
    address = parse_address(text)
    assert address is None or parse_address(str(address)) == address


@given(ADDRESSES)
def test_an_address_is_read_however_it_is_written(address: Any) -> None:
    written = {str(address), address.exploded, f"[{address}]", f" {address} "}
    bracketed = f"[{address}]:80" if address.version == 6 else f"{address}:80"
    for text in (*written, bracketed):
        parsed = parse_address(text)
        assert parsed is None or str(parsed) == normalize(address)
    assert str(parse_address(bracketed)) == normalize(address)


def test_families_of_headers_that_differ_count_for_nothing() -> None:
    forwarded = ("Forwarded", "for=203.0.113.7;proto=https")
    for other in ("198.51.100.1", "unknown"):
        headers = (forwarded, ("X-Forwarded-For", other), ("X-Forwarded-Proto", "http"))
        source = find_source(make_scope(*headers), PROXIES)
        assert (source.address, source.scheme) == (PROXY, "http")
    agreeing = (forwarded, ("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https"))
    source = find_source(make_scope(*agreeing), PROXIES)
    assert (source.address, source.scheme) == ("203.0.113.7", "https")


def test_only_the_end_of_a_header_is_read() -> None:
    hops = ", ".join(["203.0.113.7", *["10.1.1.1"] * MAX_HOPS])
    assert find_address(("X-Forwarded-For", hops)) == PROXY
    assert find_address(("X-Forwarded-For", hops.removesuffix(", 10.1.1.1"))) == "203.0.113.7"
    elements = ", ".join(["for=203.0.113.7", *["for=10.1.1.1"] * MAX_HOPS])
    assert find_address(("Forwarded", elements)) == PROXY
    assert find_address(("Forwarded", elements.removesuffix(", for=10.1.1.1"))) == "203.0.113.7"
    cut = "203.0.113.7".ljust(MAX_HEADER_CHARACTERS) + ", 10.1.1.1"
    assert find_address(("X-Forwarded-For", cut)) == PROXY


@pytest.mark.parametrize(
    ("headers", "scheme", "host"),
    [
        ({}, "http", "registry.internal:9205"),
        ({"X-Forwarded-Proto": "https"}, "https", "registry.internal:9205"),
        ({"X-Forwarded-Proto": "wss"}, "https", "registry.internal:9205"),
        ({"X-Forwarded-Proto": "gopher"}, "http", "registry.internal:9205"),
        ({"X-Forwarded-Proto": "https, http"}, "http", "registry.internal:9205"),
        (
            {"X-Forwarded-For": "203.0.113.7, 10.1.1.1", "X-Forwarded-Proto": "https, http"},
            "https",
            "registry.internal:9205",
        ),
        (
            {"X-Forwarded-For": "203.0.113.7, 10.1.1.1", "X-Forwarded-Proto": "https"},
            "https",
            "registry.internal:9205",
        ),
        ({"X-Forwarded-Host": "reg.example"}, "http", "reg.example"),
        ({"X-Forwarded-Host": "reg.example:8443"}, "http", "reg.example:8443"),
        ({"X-Forwarded-Host": "[2001:db8::7]:8443"}, "http", "[2001:db8::7]:8443"),
        ({"X-Forwarded-Host": "evil example"}, "http", "registry.internal:9205"),
        ({"X-Forwarded-Host": "x" * 300}, "http", "registry.internal:9205"),
        ({"Forwarded": "for=203.0.113.7;proto=https;host=reg.example"}, "https", "reg.example"),
        ({"Forwarded": 'proto=HTTPS;host="reg.example:8443"'}, "https", "reg.example:8443"),
        (
            {"Forwarded": "for=203.0.113.7;proto=https, for=10.1.1.1;proto=http"},
            "https",
            "registry.internal:9205",
        ),
    ],
)
def test_scheme_and_host_are_those_that_the_client_used(
    headers: dict[str, str], scheme: str, host: str
) -> None:
    source = find_source(make_scope(*headers.items()), PROXIES)
    assert (source.scheme, source.host) == (scheme, host)


@pytest.mark.parametrize(
    ("origin", "scheme", "host"),
    [
        ("https://reg.example", "https", "reg.example"),
        ("https://reg.example", "https", "reg.example:443"),
        ("https://reg.example:443", "https", "reg.example"),
        ("http://reg.example", "http", "reg.example:80"),
        ("http://reg.example:8080", "http", "reg.example:8080"),
        ("HTTPS://REG.example", "https", "reg.EXAMPLE"),
        ("https://[2001:db8::7]", "https", "[2001:DB8::7]:443"),
        ("https://reg.example", None, "reg.example:443"),
    ],
)
def test_the_same_scheme_host_and_port_are_the_same_origin(
    origin: str, scheme: str | None, host: str
) -> None:
    assert is_same_origin(origin, RequestSource("", "", scheme, host))


@pytest.mark.parametrize(
    ("origin", "scheme", "host"),
    [
        ("http://reg.example", "https", "reg.example"),
        ("https://reg.example", "http", "reg.example"),
        ("http://reg.example:443", "https", "reg.example"),
        ("https://reg.example", "https", "reg.example:80"),
        ("https://reg.example", "https", "reg.example:8443"),
        ("https://reg.example.evil.example", "https", "reg.example"),
        ("https://evil.example@reg.example", "https", "reg.example"),
        ("https://reg.example/", "https", "reg.example"),
        ("https://reg.example:", "https", "reg.example"),
        ("https://", "https", ""),
        ("ftp://reg.example", "https", "reg.example"),
        ("null", "https", "reg.example"),
        ("", "https", "reg.example"),
        ("https://reg.example", "https", None),
        ("https://reg.example", "https", "reg.example,evil.example"),
        ("https://reg.example\n", "https", "reg.example"),
    ],
)
def test_any_other_scheme_host_or_port_is_another_origin(
    origin: str, scheme: str, host: str | None
) -> None:
    assert not is_same_origin(origin, RequestSource("", "", scheme, host))


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", []),
        ("127.0.0.1", ["127.0.0.1/32"]),
        ("10.0.0.0/8, 127.0.0.1,::1", ["10.0.0.0/8", "127.0.0.1/32", "::1/128"]),
        ('["10.0.0.0/8", "fd00::/8"]', ["10.0.0.0/8", "fd00::/8"]),
        ("[]", []),
        ("::ffff:10.0.0.0/104", ["10.0.0.0/8"]),
    ],
)
def test_trusted_proxies_are_separated_by_commas_or_a_json_list(
    monkeypatch: pytest.MonkeyPatch, text: str, networks: list[str]
) -> None:
    monkeypatch.setenv("NODE_REGISTRY_TRUSTED_PROXIES", text)
    expected: TrustedNetworks = tuple(map(ipaddress.ip_network, networks))
    assert load_settings().trusted_proxies == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10.0.0.0/33", "'10.0.0.0/33'"),
        ("10.0.0.0/8 127.0.0.1", "'10.0.0.0/8 127.0.0.1'"),
        ("127.0.0.1, proxy.example", "'proxy.example'"),
        ("10.0.0.1/8", "'10.0.0.1/8'"),
        ("*", "'*'"),
        ('["10.0.0.0/8", 7]', "7"),
        ('["10.0.0.0/8"', "JSON list"),
        ("10.0.0.0/8\nevil", r"'10.0.0.0/8\nevil'"),
    ],
)
def test_a_bad_network_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, text: str, value: str
) -> None:
    monkeypatch.setenv("NODE_REGISTRY_TRUSTED_PROXIES", text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith("NODE_REGISTRY_TRUSTED_PROXIES: ")
    assert value in message
    assert "\n" not in message
