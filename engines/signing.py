"""Engines that travel: the manifest is signed with a key of yours, and checked before loading.

Ed25519 (RFC 8032) by the `cryptography` library. The manifest holds the engine's SHA-256 and that
of what lies beside it, so its signature covers them.
"""

import os
from pathlib import Path
from typing import Any

from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.manifest import write_whole

SIGNATURE = "engine.json.sig"
VERIFY_KEY = "CROWDRT_VERIFY_KEY"  # names the public key; where it is set, only signed plans load
CONTEXT = b"crowdrt engine manifest 1\n"  # so that no signature of another kind of file fits
MAKE = (
    "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out pub.pem"
)


def sign(folder: Path, manifest: bytes, key: Path) -> None:
    """Write the signature of a manifest beside it.

    Raises:
        EngineError: the key cannot be read, or is of another kind.
    """
    signature = signature_of(manifest, key)
    with write_whole(folder / SIGNATURE) as temporary:
        temporary.write_bytes(signature)


def signature_of(manifest: bytes, key: Path) -> bytes:
    """Return the signature of a manifest.

    Raises:
        EngineError: the key cannot be read, or is of another kind.
    """
    return bytes(load_key(key, private=True).sign(CONTEXT + manifest))


def check_key(key: Path) -> None:
    """Refuse a key to sign with before long work begins."""
    load_key(key, private=True)


def check_signature(folder: Path, manifest: bytes) -> None:
    """Refuse an engine that the owner of the key in $CROWDRT_VERIFY_KEY has not signed.

    Without that variable nothing is asked.

    Raises:
        EngineError: there is no signature, or it is of another manifest or key.
    """
    public = verify_key()
    if public is not None:
        _verify(_signature_in(folder), manifest, public, str(folder))


def verify_key() -> Any:
    """Return the public key in the file that $CROWDRT_VERIFY_KEY names, None where it names none.

    Raises:
        EngineError: that file cannot be read, or holds another kind of key.
    """
    named = os.environ.get(VERIFY_KEY)
    return load_key(Path(named), private=False) if named else None


def check_signed_with(folder: Path, manifest: bytes, key: Path) -> None:
    """Refuse an engine that was not signed with this private key.

    Raises:
        EngineError: there is no signature, or it is of another manifest or key.
    """
    check_signature_of(_signature_in(folder), manifest, key, source=str(folder))


def check_signature_of(signature: bytes, manifest: bytes, key: Path, *, source: str) -> None:
    """Refuse a signature that this private key has not made.

    Args:
        signature: what lies beside the manifest; empty where nothing does.
        manifest: what was signed.
        key: an Ed25519 private key (PEM).
        source: what is refused, for the message.

    Raises:
        EngineError: there is none, or it is of another manifest or key.
    """
    _verify(signature, manifest, load_key(key, private=True).public_key(), source)


def _signature_in(folder: Path) -> bytes:
    try:
        return (folder / SIGNATURE).read_bytes()
    except OSError:
        return b""


def _verify(signature: bytes, manifest: bytes, public: Any, source: str) -> None:
    invalid = require("cryptography.exceptions", extra="signing").InvalidSignature
    if not signature:  # a store in which nothing may be removed has an empty one
        raise EngineError(f"{source} is not signed", fix=sign_fix())
    try:
        public.verify(signature, CONTEXT + manifest)
    except invalid as error:
        raise EngineError(
            f"{source} was altered, or signed with another key than the one asked for",
            fix=sign_fix(),
        ) from error


def sign_fix() -> str:
    """Return how to get a signed engine."""
    return (
        "crowdrt build MODEL.onnx --engine tensorrt --sign-key key.pem, or copy the folder again "
        "from where it was signed"
    )


def load_key(path: Path, *, private: bool) -> Any:
    """Return an Ed25519 key from a PEM file without a password.

    Raises:
        EngineError: the file cannot be read, or holds another kind of key.
    """
    serialization = require("cryptography.hazmat.primitives.serialization", extra="signing")
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", extra="signing")
    kind = "private" if private else "public"
    try:
        content = path.read_bytes()
        if private:
            key = serialization.load_pem_private_key(content, password=None)
        else:
            key = serialization.load_pem_public_key(content)
    except (OSError, ValueError, TypeError) as error:  # TypeError: it has a password
        raise EngineError(
            f"{path} holds no {kind} key: {error}", fix=f"make one: {MAKE}"
        ) from error
    wanted = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    if not isinstance(key, wanted):
        raise EngineError(f"{path} holds no {kind} key of Ed25519", fix=f"make one: {MAKE}")
    return key
