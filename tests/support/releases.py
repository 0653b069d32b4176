"""Keys that sign a release, and the part of a report that its manifest quotes."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sani.reporting.schema import Gate, Provenance, Report


def report_of(*, holds: bool) -> Report:
    """Return a report with no more in it than a manifest quotes."""
    provenance: dict[str, Any] = {
        "seed": 0,
        "recipe_digest": "0123456789ab",
        "corpus_digest": "ba9876543210",
    }
    parts: dict[str, Any] = {
        "gate": Gate.model_construct(holds=holds, weaker=[], checks=[]),
        "provenance": Provenance.model_construct(**provenance),
    }
    return Report.model_construct(**parts)


REPORT = report_of(holds=True)


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
