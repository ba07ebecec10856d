"""The inputs in tests/corpus, and what can be made of them."""

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.support.paths import ROOT

CORPUS = ROOT / "tests" / "corpus"

_TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0\r\n\r\n"),
    *(b"-1", b"ffffffffffffffff1", b"chunked", b"100-continue", b"upgrade", b"%00", b"%", b"//"),
    *(b"\x88\x03\xe8", b"\x89", b"\x01", b"\x80", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"{", b"}", b"(", b"[", b'"', b'"""', b"\\", b"...", b"$", b"@skip(if:true)", b"#", b"null"),
]


def list_corpus(target: str) -> dict[str, bytes]:
    """Return the target's inputs by their names."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}


@st.composite
def mutations(draw: st.DrawFn, corpus: Sequence[bytes]) -> bytes:
    """Draw an input of the corpus with a few changes."""
    data = draw(st.sampled_from(corpus))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        part = data[start:end]
        match draw(st.sampled_from(["cut", "drop", "repeat", "flip", "splice", "insert"])):
            case "cut":
                data = data[:end]
            case "drop":
                data = data[:start] + data[end:]
            case "repeat":
                data = data[:start] + part * draw(st.integers(2, 20)) + data[end:]
            case "flip":
                changed = bytes([data[start] ^ draw(st.integers(1, 255))]) if part else b""
                data = data[:start] + changed + data[start + len(changed) :]
            case "splice":
                other = draw(st.sampled_from(corpus))
                data = data[:start] + other[draw(st.integers(0, len(other))) :]
            case "insert":
                inserted = draw(st.sampled_from(_TOKENS) | st.binary(max_size=8))
                data = data[:start] + inserted + data[start:]
    return data
