"""The signature of a bundle: Ed25519 over the bytes of its manifest, which has the digest of every other file.

It lies beside the manifest as ``manifest.sig``, 64 bytes in base64.  Keys are PEM files as OpenSSL writes them.  A key
vouches for all of a bundle: its weights, its graphs, its plans, and its settings.
"""

import base64
import binascii
import os
import pathlib
from typing import Any

from taylorseer.bundle_files import read_regular
from taylorseer.errors import DependencyError, OutputError, SignatureError

__all__ = ["SIGNATURE_NAME", "new_key", "require_signature", "signature_of"]

SIGNATURE_NAME = "manifest.sig"

_PURPOSE = b"taylorseer bundle manifest\n"
"""Signed before the manifest, so that no signature of the same key for something else serves here."""

_LIMIT = 2**16
"""Bytes of a key or a signature: no honest one comes near."""


def signature_of(manifest: bytes, key: str | os.PathLike[str]) -> bytes:
    """Return the content of ``manifest.sig`` for a manifest's bytes.

    Args:
        manifest: the content of ``manifest.json``.
        key: a PEM file with an Ed25519 private key, without a password.

    Raises:
        SignatureError: the key cannot be read, or is of another kind.
        DependencyError: cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    try:
        private = serialization.load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise _unusable(key, f"no private key without a password ({error})") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise _unusable(key, "no Ed25519 key")
    return base64.b64encode(private.sign(_PURPOSE + manifest)) + b"\n"


def require_signature(folder: pathlib.Path, manifest: bytes, public_key: str | os.PathLike[str]) -> None:
    """Refuse a manifest that ``public_key`` did not sign.

    Args:
        folder: the bundle, with ``manifest.sig``.
        manifest: the bytes of its manifest, as they will be parsed.
        public_key: a PEM file with an Ed25519 public key.

    Raises:
        SignatureError: there is no signature, it is of another key or manifest, or the key cannot be read.
        DependencyError: cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    try:
        public = serialization.load_pem_public_key(_read(public_key))
    except ValueError as error:
        raise _unusable(public_key, f"no public key ({error})") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise _unusable(public_key, "no Ed25519 key")
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(_read_signature(folder), _PURPOSE + manifest)
    except InvalidSignature as error:
        raise SignatureError(
            f"The bundle {str(folder)!r} is not signed by {os.fspath(public_key)}: it was altered, or signed with "
            "another key. Do not use it, or give the key of whoever made it."
        ) from error


def new_key(path: str | os.PathLike[str]) -> pathlib.Path:
    """Write a new private key to ``path``, for its owner alone, and its public key beside it; return the latter's path.

    Raises:
        OutputError: a file exists or cannot be written.
        DependencyError: cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    encoding = serialization.Encoding.PEM
    secret = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    target = pathlib.Path(f"{os.fspath(path)}.pub")
    try:
        for file, content, mode in ((pathlib.Path(path), secret, 0o600), (target, public, 0o644)):
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
                opened.write(content)
    except OSError as error:
        raise OutputError(f"The key {os.fspath(path)!r} cannot be written: {error}. Give another --key.") from error
    return target


def _read_signature(folder: pathlib.Path) -> bytes:
    try:
        return base64.b64decode(read_regular(folder / SIGNATURE_NAME, _LIMIT).strip(), validate=True)
    except FileNotFoundError as error:
        raise SignatureError(
            f"The bundle {str(folder)!r} is not signed (no {SIGNATURE_NAME}), and a key was given: sign it with "
            "`taylorseer sign`, or get it from whoever signs it."
        ) from error
    except (OSError, OverflowError, binascii.Error) as error:
        raise SignatureError(f"{folder / SIGNATURE_NAME} is no signature ({error}): sign the bundle again.") from error


def _read(key: str | os.PathLike[str]) -> bytes:
    try:
        with open(key, "rb") as file:
            return file.read(_LIMIT)
    except OSError as error:
        raise _unusable(key, f"nothing that can be read ({error.strerror})") from error


def _unusable(key: str | os.PathLike[str], what: str) -> SignatureError:
    return SignatureError(
        f"{os.fspath(key)!r} is {what}: give an Ed25519 key in a PEM file, such as `taylorseer sign --new-key` makes."
    )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise DependencyError("Signatures need cryptography: `pip install 'taylorseer-trt[sign]'`.") from error
    return serialization, ed25519
