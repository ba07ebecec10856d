"""The cursors of pages: encoding, and the rejection of invalid ones."""

import base64
import json
from datetime import UTC, datetime
from uuid import NAMESPACE_OID, uuid4, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.errors import BadInput
from db.core.pagination import Keyset
from db.core.tables import NODE
from db.registry.nodes import NodeOrder

KEYSETS = [by.to_keyset(descending=descending) for by in NodeOrder for descending in (False, True)]


@pytest.mark.parametrize("order", KEYSETS, ids=lambda order: order.name)
def test_a_cursor_is_valid_only_for_its_own_order(order: Keyset) -> None:
    instant = datetime(2026, 1, 17, 14, 30, 0, 123456, tzinfo=UTC)
    values = [instant if order.types[0] is datetime else "node-1 ä\\%", uuid4()]
    cursor = order.encode_cursor(*values)
    assert order.decode_cursor(cursor) == values
    for other in KEYSETS:
        if other.name != order.name:
            with pytest.raises(BadInput, match="not a cursor of this list and order"):
                other.decode_cursor(cursor)


def encode_content(*content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


BY_TIME = NodeOrder.REGISTERED_AT.to_keyset(descending=False)
BY_ID = NodeOrder.NODE_ID.to_keyset(descending=False)
SOME_ID = str(uuid5(NAMESPACE_OID, "some"))


@pytest.mark.parametrize(
    ("order", "cursor"),
    [
        (BY_ID, ""),
        (BY_ID, "a"),
        (BY_ID, "%%%"),
        (BY_ID, "ключ"),
        (BY_ID, "AAAA" * 10_000),
        (BY_ID, base64.b64encode(b"[" * 10_000).decode()),
        (BY_ID, base64.b64encode(b"7").decode()),
        (BY_ID, base64.b64encode(b"null").decode()),
        (BY_ID, base64.b64encode(b'{"nodes.node_id.asc": 1}').decode()),
        (BY_ID, encode_content(BY_ID.name)),
        (BY_ID, encode_content(BY_ID.name, "node-1")),
        (BY_ID, encode_content(BY_ID.name, "node-1", SOME_ID, 1)),
        (BY_ID, encode_content(BY_ID.name, "node-1", "no uuid")),
        (BY_ID, encode_content(BY_ID.name, "node-1", 7)),
        (BY_ID, encode_content(BY_ID.name, None, SOME_ID)),
        (BY_ID, encode_content(BY_ID.name, 7, SOME_ID)),
        (BY_ID, encode_content(BY_ID.name, "nul \0", SOME_ID)),
        (BY_TIME, encode_content(BY_TIME.name, "yesterday", SOME_ID)),
        (BY_TIME, encode_content(BY_TIME.name, "2026-01-01T00:00:00", SOME_ID)),
        (BY_TIME, encode_content(BY_TIME.name, "0001-01-01T00:00:00+14:00", SOME_ID)),
        (BY_TIME, encode_content(BY_TIME.name, 1700000000, SOME_ID)),
    ],
)
def test_an_invalid_cursor_is_rejected(order: Keyset, cursor: str) -> None:
    with pytest.raises(BadInput, match="not a cursor of this list and order"):
        order.decode_cursor(cursor)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 1.5, True, "1", None])
def test_a_cursor_with_an_impossible_number_is_rejected(number: object) -> None:
    order = Keyset("numbers", (NODE.last_sequence,), (int,))
    with pytest.raises(BadInput):
        order.decode_cursor(encode_content("numbers", number))


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_a_random_text_is_rejected_as_a_cursor(cursor: str) -> None:
    for order in (BY_ID, BY_TIME):
        with pytest.raises(BadInput):
            order.decode_cursor(cursor)
