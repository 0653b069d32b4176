"""Keys that sign a release, and the part of a report that its manifest quotes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sani.gate import Check
from sani.recipe import GateSettings
from sani.reporting.schema import Gate, Provenance, Report

CHECKS = [
    Check("unscored", 0.0, 0.0, True, "Every occurrence was scored."),
    Check("positive_control.direct", 0.4, 0.15, True, "Measured.", at_least=True),
    Check("greedy_beyond_control.direct", 0.0, 1.0, True, "0 of 90."),
    Check("discoverable_beyond_control.direct", 1.0, 1.0, True, "1 of 90."),
    Check("sampled_beyond_control.direct", 1.0, 2.0, True, "1 of 40."),
    Check("subjects.direct", 2.4, 3.1, True, "0 of 9 stand out."),
    Check("labels.direct", 1.4, 2.1, True, "0 of 3 stand out."),
    Check("auc_to_base.direct", 0.51, 0.55, True, "0.05 above chance is allowed."),
    Check("perplexity_ratio", 1.01, 1.03, True, "It was 3."),
]


def report_of(
    *,
    holds: bool = True,
    checks: Sequence[Check] = CHECKS,
    settings: GateSettings | None = None,
) -> Report:
    """Return a report with no more in it than a manifest quotes."""
    provenance: dict[str, Any] = {
        "seed": 0,
        "recipe_digest": "0123456789ab",
        "corpus_digest": "ba9876543210",
    }
    parts: dict[str, Any] = {
        "gate": Gate(holds=holds, weaker=[], checks=list(checks)),
        "gate_settings": settings or GateSettings(),
        "provenance": Provenance.model_construct(**provenance),
    }
    return Report.model_construct(**parts)


REPORT = report_of()


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
