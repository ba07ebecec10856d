"""The text of a token: how it is generated, recognized, compared and redacted.

Like GitHub's tokens it has a prefix by which secret scanners find it, and ends with a checksum:
`nrk_`, 10 characters of public id, 32 of secret, and 6 of CRC-32, all in base 62.
https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/
"""

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

PREFIX = "nrk_"
PUBLIC_ID_LENGTH = 10
SECRET_LENGTH = 32
_CHECKSUM_LENGTH = 6

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_TOKEN = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{PUBLIC_ID_LENGTH}}})([0-9A-Za-z]{{{SECRET_LENGTH}}})"
    rf"([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A generated token. `text` is stored nowhere: who receives it alone has it."""

    public_id: str
    text: str = field(repr=False)
    secret_hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PresentedToken:
    """The public id and the secret's hash of a well-formed text; it need not be a valid token."""

    public_id: str
    secret_hash: bytes = field(repr=False)

    def matches(self, secret_hash: bytes) -> bool:
        """Return whether the secrets are the same, in a time that does not depend on them."""
        return hmac.compare_digest(self.secret_hash, secret_hash)


def generate_token() -> NewToken:
    public_id, secret = (
        _generate_random_text(PUBLIC_ID_LENGTH),
        _generate_random_text(SECRET_LENGTH),
    )
    text = f"{PREFIX}{public_id}{secret}{_compute_checksum(public_id + secret)}"
    return NewToken(public_id, text, _hash_secret(secret))


def parse_token(text: str) -> PresentedToken | None:
    """Return the parts of the token, or None if `generate_token` cannot have made the text.

    The checksum finds most junk, and every typo of one or two characters.
    """
    if not (match := _TOKEN.fullmatch(text)):
        return None
    public_id, secret, checksum = match.groups()
    if _compute_checksum(public_id + secret) != checksum:
        return None
    return PresentedToken(public_id, _hash_secret(secret))


def cut_tokens(text: str) -> str:
    """Return the text with each token of a registry cut to its public id."""
    return _TOKEN.sub(rf"{PREFIX}\1…", text) if PREFIX in text else text


def redact_tokens(text: str) -> str:
    """Return the text with each token cut to its public id, and each JWT cut to nothing."""
    return _JWT.sub("eyJ…", cut_tokens(text))


def redact_values(value: Any, redact: Callable[[str], str] = redact_tokens) -> Any:
    """Return JSON with each of its texts redacted, the names of members too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(name): redact_values(member, redact) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(member, redact) for member in value]
    return value


def _generate_random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _hash_secret(secret: str) -> bytes:
    # Slow hashes protect what people think up: nobody guesses one of 2^190 random texts.
    return hashlib.sha256(secret.encode()).digest()


def _compute_checksum(text: str) -> str:
    number = crc32(text.encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
