"""The text of a token: recognizable, and checked without the database."""

import hashlib
import hmac
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.token_format import (
    NewToken,
    PresentedToken,
    generate_token,
    parse_token,
    redact_values,
)

BASE62 = string.digits + string.ascii_letters


def test_a_token_matches_the_pattern_of_secret_scanners() -> None:
    assert re.fullmatch(r"nrk_[0-9A-Za-z]{48}", generate_token().text)


def test_no_two_tokens_are_equal() -> None:
    tokens = [generate_token() for _ in range(1000)]
    assert len({token.text for token in tokens}) == 1000
    assert len({token.public_id for token in tokens}) == 1000
    assert len({token.secret_hash for token in tokens}) == 1000


def test_a_presented_token_matches_only_its_own_hash() -> None:
    token, other = generate_token(), generate_token()
    presented = parse_token(token.text)
    assert presented is not None
    assert presented.public_id == token.public_id
    assert presented.matches(token.secret_hash)
    assert not presented.matches(other.secret_hash)


def test_the_hash_is_that_of_the_secret_part_alone() -> None:
    token = generate_token()
    secret = token.text.removeprefix(f"nrk_{token.public_id}")[:32]
    assert token.secret_hash == hashlib.sha256(secret.encode()).digest()


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    in_constant_time = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return in_constant_time(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert not PresentedToken("x", b"mine").matches(b"theirs")
    assert compared == [(b"mine", b"theirs")]


@given(st.integers(4, 51), st.sampled_from(BASE62))
def test_a_mistyped_token_is_not_parsed(position: int, character: str) -> None:
    text = TOKEN.text[:position] + character + TOKEN.text[position + 1 :]
    assert (parse_token(text) is None) == (text != TOKEN.text)


@given(st.integers(4, 50))
def test_a_token_with_two_swapped_characters_is_not_parsed(position: int) -> None:
    a, b = TOKEN.text[position], TOKEN.text[position + 1]
    text = TOKEN.text[:position] + b + a + TOKEN.text[position + 2 :]
    assert (parse_token(text) is None) == (a != b)


@given(
    st.one_of(
        st.text(),
        st.text(BASE62, min_size=48, max_size=48).map("nrk_{}".format),
        st.text(max_size=5)
        .map(lambda more: TOKEN.text + more)
        .filter(lambda text: text != TOKEN.text),
        st.integers(0, 51).map(lambda length: TOKEN.text[:length]),
    )
)
def test_random_text_is_not_parsed(text: str) -> None:
    assert parse_token(text) is None


@pytest.mark.parametrize(
    "alter", [str.upper, str.swapcase, lambda text: f" {text}", lambda text: f"{text}\n"]
)
def test_an_altered_token_is_not_parsed(alter: object) -> None:
    assert callable(alter)
    assert parse_token(alter(TOKEN.text)) is None


def test_a_token_with_digits_of_another_script_is_not_parsed() -> None:
    token = next(
        token for token in iter(generate_token, None) if any(c in string.digits for c in token.text)
    )
    arabic = str.maketrans(string.digits, "".join(chr(0x660 + n) for n in range(10)))
    assert parse_token(token.text.translate(arabic)) is None


def test_no_secret_is_shown_when_a_token_is_printed() -> None:
    token = generate_token()
    presented = parse_token(token.text)
    for text in (repr(token), str(token), repr(presented), f"{presented}"):
        assert token.public_id in text
        assert token.text not in text
        assert token.text[14:46] not in text
        assert repr(token.secret_hash) not in text


TOKEN: NewToken = generate_token()
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.c2lnbmF0dXJl"
_TEXTS = st.text() | st.sampled_from([TOKEN.text, JWT, f"nrk_{TOKEN.text}{TOKEN.text}", f"a{JWT}"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | _TEXTS,
        lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner),
    )
)
def test_redaction_leaves_no_secret_anywhere_and_all_else(value: object) -> None:
    secrets = (TOKEN.text[14:46], JWT[-10:])
    assert not [secret for secret in secrets if secret in str(redact_values(value))]
    if not [secret for secret in secrets if secret in str(value)]:
        assert redact_values(value) == value
