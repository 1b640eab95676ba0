"""The keys with which a site signs: making, reading and using them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from joserfc.jwk import ECKey, OKPKey

from federated_dask.errors import ConfigurationError

__all__ = ["Key", "new_issuer_key", "public_key_of", "signing_key", "verifying_key"]

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
Key: TypeAlias = OKPKey | ECKey


def new_issuer_key() -> bytes:
    """Make the private key of a site's issuer.

    Returns
    -------
    bytes
        An Ed25519 key as PEM (PKCS #8, not encrypted).

    Examples
    --------
    >>> new_issuer_key().splitlines()[0]
    b'-----BEGIN PRIVATE KEY-----'
    """
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key_of(private_key: Path) -> bytes:
    """Give the public key that goes with a private key file, as PEM.

    Raises
    ------
    ConfigurationError
        If the key cannot be used.
    """
    return (
        _load(private_key)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def signing_key(private_key: Path) -> tuple[str, Key]:
    """Read a private key, and name the one algorithm that goes with it.

    Raises
    ------
    ConfigurationError
        If the key cannot be used.
    """
    key = _load(private_key)
    return _for_joserfc(key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def verifying_key(public_key: bytes) -> tuple[str, Key]:
    """Read a public key as PEM, and name the one algorithm that goes with it.

    Raises
    ------
    ValueError
        If it is no Ed25519 or EC P-256 public key.
    """
    return _for_joserfc(load_pem_public_key(public_key), public_key)


def _load(path: Path) -> PrivateKey:
    """Read the issuer's private key, of a kind that can sign tokens."""
    wrong = "is not an Ed25519 or EC P-256 private key in PEM form without a password"
    hint = "`federated-dask site init DIR` makes one."
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(f"The key {path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote the file.
        key = None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigurationError(f"{path} {wrong}.", hint=hint)


def _for_joserfc(key: object, pem: bytes) -> tuple[str, Key]:
    """Import a key that was loaded from `pem`, and name the one algorithm that goes with it."""
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return "Ed25519", OKPKey.import_key(pem)
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1
    ):
        return "ES256", ECKey.import_key(pem)
    raise ValueError("only Ed25519 and EC P-256 keys sign tokens")
