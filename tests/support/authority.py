"""Certificates for the tests: an authority, and what it signs."""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
BEGUN = datetime.now(UTC).replace(microsecond=0) - DAY


@dataclass(frozen=True)
class Pair:
    """The paths of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """Keeps all that it signs in `folder`, each under a name of its own."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        made = (
            _begun(self._name, self._name, self._key.public_key(), BEGUN + 100 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(_id(self._key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str = "server", password: bytes | None = None) -> Pair:
        """Issue a certificate for 127.0.0.1 and localhost."""
        reached_as = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        return self._signed(
            name, _named("registry"), ExtendedKeyUsageOID.SERVER_AUTH, reached_as, password=password
        )

    def client(
        self,
        *common_names: str,
        name: str = "client",
        ends_at: datetime = BEGUN + 10 * DAY,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> Pair:
        # RFC 5280, which OpenSSL is strict about from Python 3.13 on: a certificate without a
        # subject has another name, as a critical extension.
        other_name = None if common_names else x509.SubjectAlternativeName([x509.DNSName("nobody")])
        return self._signed(name, _named(*common_names), purpose, other_name, ends_at=ends_at)

    def _signed(
        self,
        name: str,
        subject: x509.Name,
        purpose: x509.ObjectIdentifier,
        reached_as: x509.SubjectAlternativeName | None = None,
        *,
        ends_at: datetime = BEGUN + 10 * DAY,
        password: bytes | None = None,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            _begun(subject, self._name, key.public_key(), ends_at)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(_id(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if reached_as is not None:
            made = made.add_extension(reached_as, critical=not list(subject))
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        signed = made.sign(self._key, hashes.SHA256())
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password)
                if password
                else serialization.NoEncryption(),
            )
        )
        return pair


def _named(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends_at: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=BEGUN,
        not_valid_after=ends_at,
    )


def _id(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def make_tls_settings(pair: Pair, client_ca: Path | None = None) -> dict[str, Any]:
    return {
        "tls_certificate": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": client_ca,
    }


def make_client_context(authority: Authority, shown: Pair | None = None) -> ssl.SSLContext:
    """Return the context of a client: what it trusts, and the certificate that it shows."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context
