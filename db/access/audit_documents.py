"""What an audit entry holds of its subject before and after: what changed, within bounds."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

MAX_VALUE_BYTES = 1024
"""A longer value is replaced by its size and digest; of an object, its longer values are."""

MAX_ENTRY_BYTES = 8 * 1024
"""Both documents of an entry together, as JSON."""

Document = Mapping[str, Any]


def encode(value: object) -> bytes:
    """Return JSON that is equal for equal values. In Python 1 and true are equal, here not."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def find_changes(before: Document, after: Document) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return of both documents what differs; of objects within them, likewise."""
    changes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before:
            changes[1][name] = after[name]
        elif name not in after:
            changes[0][name] = before[name]
        elif isinstance(before[name], Mapping) and isinstance(after[name], Mapping):
            old, new = find_changes(before[name], after[name])
            if old or new:
                changes[0][name], changes[1][name] = old, new
        elif encode(before[name]) != encode(after[name]):
            changes[0][name], changes[1][name] = before[name], after[name]
    return changes


def bound(
    before: Document | None, after: Document | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the documents with long values replaced by `{"bytes": …, "sha256": …}`."""
    documents = [
        None if document is None else {name: _bound_value(document[name]) for name in document}
        for document in (before, after)
    ]
    present = [document for document in documents if document is not None]
    sizes = {
        (i, name): len(encode({name: value}))
        for i, document in enumerate(present)
        for name, value in document.items()
    }
    excess = sum(sizes.values()) - MAX_ENTRY_BYTES
    for (i, name), size in sorted(sizes.items(), key=lambda item: -item[1]):
        if excess <= 0:
            break
        present[i][name] = _digest(present[i][name])
        excess -= size - len(encode({name: present[i][name]}))
    return documents[0], documents[1]


def _bound_value(value: Any) -> Any:
    if len(encode(value)) <= MAX_VALUE_BYTES:
        return value
    if isinstance(value, Mapping):
        bounded = {name: _bound_value(part) for name, part in value.items()}
        if len(encode(bounded)) <= 2 * MAX_VALUE_BYTES:
            return bounded
    return _digest(value)


def _digest(value: Any) -> dict[str, Any]:
    encoded = encode(value)
    return {"bytes": len(encoded), "sha256": hashlib.sha256(encoded).hexdigest()}
