"""Strategies of hypothesis for JSON documents."""

from typing import Any

from hypothesis import strategies as st

WHOLE = [0, 1, -1, 100, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 10**16]
DOUBLES = [-0.0, 1.0, 1e2, 0.1, 1.5, 2.0**53, 1e16, 9.223372036854778e18, 1e22, 1e300, 5e-324]
NUMBERS = st.sampled_from([*WHOLE, *DOUBLES])
TEXTS = st.sampled_from(["", "a", "1", "true", "é", "e\u0301", "日本", "😀", "\u2028", '"\\'])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "é", ""]), inner, max_size=3)
    ),
    max_leaves=12,
)


@st.composite
def prune(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document that is mostly contained in the given one.

    Parts are left out, doubled, moved or changed.
    """
    if draw(st.integers(0, 19)) == 0:
        return draw(DOCUMENTS)
    if isinstance(document, dict):
        keys = draw(st.lists(st.sampled_from([*document, None]), unique=True))
        return {key: draw(prune(document[key])) for key in keys if key is not None}
    if isinstance(document, list):
        places = draw(st.lists(st.sampled_from([*range(len(document)), None]), max_size=4))
        return [draw(prune(document[place])) for place in places if place is not None]
    if isinstance(document, (int, float)) and not isinstance(document, bool):
        return draw(st.sampled_from([document, float(document)]))
    return document
