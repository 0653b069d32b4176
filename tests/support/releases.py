"""What a release is signed with, and the part of a report that its manifest quotes."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

REPORT: dict[str, Any] = {
    "gate": {"holds": True, "checks": []},
    "provenance": {"seed": 0, "recipe_digest": "0123456789ab", "corpus_digest": "ba9876543210"},
}


def make_keys(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a private and a public key, as openssl does."""
    key = ec.generate_private_key(ec.SECP256R1())
    locked = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, locked))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, info))
    return private, public
