"""TLS of one endpoint's own: the authorities to trust for it, and the certificate that says who we are to it (mTLS).

Pure. What cannot work is refused when it is given, with the reason: text that is no PEM, a key that is not the
certificate's, one that is too weak or has a passphrase, a certificate that has expired. What is kept is certificates
and key alone, written anew: whatever else stood in the text is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import Certificate, load_pem_x509_certificates

__all__ = [
    "CHAIN_MAX",
    "PEM_CHARS_MAX",
    "CertificateInfo",
    "TlsError",
    "check_authorities",
    "check_identity",
    "describe",
]

PEM_CHARS_MAX = 48 * 1024
"""Some twenty certificates, or a chain with its key; two of these fit into one request."""

# Endpoints are shown over and over; a PEM takes some 5 KiB, and a certificate 0.1 ms to read.
CERTIFICATES_REMEMBERED = 500
CHAIN_MAX = 20
RSA_BITS_MIN = 2048  # NIST SP 800-57: anything less has been out since 2014


class TlsError(ValueError):
    """What was given cannot be used; the text says why and what to give."""


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What is shown of a certificate. Times in Unix seconds; ``sha256`` in hex, of its DER."""

    subject: str
    issuer: str
    not_before: float
    expires_at: float
    sha256: str


def check_authorities(pem: str, *, now: float) -> str:
    """The certificates to trust, as they are kept. A receiver's own self-signed one will do. Raises TlsError."""
    certificates = _certificates(pem, "the certificates to trust")
    if all(_expires_at(each) <= now for each in certificates):
        raise TlsError("all of these certificates have expired: give one that is valid")
    return _written(certificates)


def check_identity(cert_pem: str, key_pem: str, *, now: float) -> tuple[str, str]:
    """The client certificate (with its chain behind it) and its key, as they are kept. Raises TlsError."""
    certificates = _certificates(cert_pem, "the client certificate")
    if _expires_at(certificates[0]) <= now:
        raise TlsError("the client certificate has expired: give one that is valid")
    try:
        key = load_pem_private_key(key_pem.encode(), password=None)
    except TypeError as error:
        raise TlsError("the key has a passphrase: give it without, it is sealed when it is stored") from error
    except Exception as error:  # the library raises several of its own, and tells of the key in none that we pass on
        raise TlsError("the key is not a private key in PEM (-----BEGIN PRIVATE KEY-----)") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise TlsError("the key is of a kind that TLS has no use for: give an RSA, EC or Ed25519 key")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < RSA_BITS_MIN:
        raise TlsError(f"the RSA key has {key.key_size} bits: give one of {RSA_BITS_MIN} or more")
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificates[0].public_key().public_bytes(*form):
        raise TlsError("the key is not that of the (first) client certificate: give the pair that belongs together")
    return _written(certificates), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@lru_cache(maxsize=CERTIFICATES_REMEMBERED)
def describe(pem: str) -> tuple[CertificateInfo, ...]:
    """Certificates that were checked once."""
    return tuple(
        CertificateInfo(
            subject=each.subject.rfc4514_string(),
            issuer=each.issuer.rfc4514_string(),
            not_before=each.not_valid_before_utc.timestamp(),
            expires_at=_expires_at(each),
            sha256=each.fingerprint(hashes.SHA256()).hex(),
        )
        for each in load_pem_x509_certificates(pem.encode())
    )


def _certificates(pem: str, what: str) -> Sequence[Certificate]:
    try:
        certificates = load_pem_x509_certificates(pem.encode())
        for each in certificates:
            each.public_key()
            _ = each.subject.rfc4514_string(), each.issuer.rfc4514_string()
    except Exception as error:  # several of the library's own, UnicodeEncodeError among them
        raise TlsError(f"{what}: certificates in PEM are expected (-----BEGIN CERTIFICATE-----)") from error
    if len(certificates) > CHAIN_MAX:
        raise TlsError(f"{what}: at most {CHAIN_MAX} certificates, these are {len(certificates)}")
    return certificates


def _expires_at(certificate: Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _written(certificates: Sequence[Certificate]) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)
