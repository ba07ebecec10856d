"""The text of a key: recognizable, and told from junk without asking the database."""

import hashlib
import hmac
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.token_format import NewToken, PresentedToken, generate_token, parse_token

BASE62 = string.digits + string.ascii_letters


def test_a_key_is_what_secret_scanners_are_told_to_look_for() -> None:
    assert re.fullmatch(r"nrk_[0-9A-Za-z]{48}", generate_token().text)


def test_no_two_keys_are_alike() -> None:
    made = [generate_token() for _ in range(1000)]
    assert len({key.text for key in made}) == 1000
    assert len({key.public_id for key in made}) == 1000
    assert len({key.secret_hash for key in made}) == 1000


def test_a_key_that_is_presented_matches_what_is_stored_and_no_other() -> None:
    key, other = generate_token(), generate_token()
    presented = parse_token(key.text)
    assert presented is not None
    assert presented.public_id == key.public_id
    assert presented.matches(key.secret_hash)
    assert not presented.matches(other.secret_hash)


def test_what_is_stored_is_the_hash_of_the_secret_part_alone() -> None:
    key = generate_token()
    secret = key.text.removeprefix(f"nrk_{key.public_id}")[:32]
    assert key.secret_hash == hashlib.sha256(secret.encode()).digest()


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
def test_a_mistyped_key_is_none(place: int, typed: str) -> None:
    text = KEY.text[:place] + typed + KEY.text[place + 1 :]
    assert (parse_token(text) is None) == (text != KEY.text)


@given(st.integers(4, 50))
def test_a_key_with_two_characters_swapped_is_none(place: int) -> None:
    a, b = KEY.text[place], KEY.text[place + 1]
    text = KEY.text[:place] + b + a + KEY.text[place + 2 :]
    assert (parse_token(text) is None) == (a != b)


@given(
    st.one_of(
        st.text(),
        st.text(BASE62, min_size=48, max_size=48).map("nrk_{}".format),
        st.text(max_size=5).map(lambda more: KEY.text + more).filter(lambda text: text != KEY.text),
        st.integers(0, 51).map(lambda length: KEY.text[:length]),
    )
)
def test_junk_is_no_key(text: str) -> None:
    assert parse_token(text) is None


@pytest.mark.parametrize(
    "changed", [str.upper, str.swapcase, lambda text: f" {text}", lambda text: f"{text}\n"]
)
def test_a_key_that_was_tampered_with_is_none(changed: object) -> None:
    assert callable(changed)
    assert parse_token(changed(KEY.text)) is None


def test_a_key_in_the_digits_of_another_script_is_none() -> None:
    key = next(
        key for key in iter(generate_token, None) if any(c in string.digits for c in key.text)
    )
    arabic = str.maketrans(string.digits, "".join(chr(0x660 + n) for n in range(10)))
    assert parse_token(key.text.translate(arabic)) is None


def test_no_secret_is_shown_when_a_key_is_printed() -> None:
    key = generate_token()
    presented = parse_token(key.text)
    for shown in (repr(key), str(key), repr(presented), f"{presented}"):
        assert key.public_id in shown
        assert key.text not in shown
        assert key.text[14:46] not in shown
        assert repr(key.secret_hash) not in shown


KEY: NewToken = generate_token()
