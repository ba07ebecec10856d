"""Requests whose responses are megabytes."""

import orjson


def make_big_query(megabytes: int) -> str:
    """Return a query whose response has so many megabytes if the metadata of node "a" is 50 kB."""
    fields = (f'n{number}: node(nodeId: "a") {{ metadata }}' for number in range(20 * megabytes))
    return f"{{ {' '.join(fields)} }}"


def make_request(query: str, accept: str = "application/json") -> bytes:
    body = orjson.dumps({"query": query})
    return (
        f"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Accept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
