"""Certificates for the tests: an authority and the certificates that it signs."""

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
VALID_FROM = datetime.now(UTC).replace(microsecond=0) - DAY


@dataclass(frozen=True)
class Pair:
    """The paths of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority that writes each certificate to `folder` under its own name."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _make_name(name)
        certificate = (
            _build_certificate(
                self._name, self._name, self._key.public_key(), VALID_FROM + 100 * DAY
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_make_key_usage(signs=True), critical=True)
            .add_extension(_make_key_identifier(self._key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str = "server", password: bytes | None = None) -> Pair:
        """Issue a certificate for 127.0.0.1 and localhost."""
        server_names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        return self._sign(
            name,
            _make_name("registry"),
            ExtendedKeyUsageOID.SERVER_AUTH,
            server_names,
            password=password,
        )

    def client(
        self,
        *common_names: str,
        name: str = "client",
        ends_at: datetime = VALID_FROM + 10 * DAY,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> Pair:
        # RFC 5280, which OpenSSL is strict about from Python 3.13 on: a certificate without a
        # subject needs an alternative name, as a critical extension.
        alternative_name = (
            None if common_names else x509.SubjectAlternativeName([x509.DNSName("nobody")])
        )
        return self._sign(
            name, _make_name(*common_names), purpose, alternative_name, ends_at=ends_at
        )

    def _sign(
        self,
        name: str,
        subject: x509.Name,
        purpose: x509.ObjectIdentifier,
        server_names: x509.SubjectAlternativeName | None = None,
        *,
        ends_at: datetime = VALID_FROM + 10 * DAY,
        password: bytes | None = None,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _build_certificate(subject, self._name, key.public_key(), ends_at)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_make_key_usage(signs=False), critical=True)
            .add_extension(_make_key_identifier(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if server_names is not None:
            builder = builder.add_extension(server_names, critical=not list(subject))
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        certificate = builder.sign(self._key, hashes.SHA256())
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
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


def _make_name(*common_names: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common_name) for common_name in common_names]
    )


def _build_certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends_at: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=VALID_FROM,
        not_valid_after=ends_at,
    )


def _make_key_identifier(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _make_key_usage(*, signs: bool) -> x509.KeyUsage:
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


def make_client_context(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    """Return a client's TLS context, which trusts the authority and presents the pair, if any."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context
