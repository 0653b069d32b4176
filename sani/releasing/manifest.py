"""The manifest of a released checkpoint: what it must hold, byte by byte, and where it came from.

Whoever can change a file can change the manifest too; only a signature, with a key that they do
not have, tells that apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from sani.atomic import PARTIAL, new_file
from sani.errors import CheckpointError

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
PASSWORD = "SANI_KEY_PASSWORD"
NO_FILE = "not a regular file"


class Manifest(BaseModel):
    """Content of ``manifest.json``.

    Attributes:
        schema_version: 1.
        gate: The run's verdict, limit by limit.
        provenance: Seed, versions, and digests of recipe and corpus, keyed by the run's secret.
        weights_digest: `Checkpoint.weights_digest` of the weights that were audited.
        files: SHA-256 of every other file, by its path in the folder.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_version: Literal[1]
    gate: dict[str, Any]
    provenance: dict[str, Any]
    weights_digest: str
    files: dict[str, str]


@dataclass(frozen=True)
class Verification:
    """What became of a released folder.

    Attributes:
        files: How many files the manifest lists.
        added: Files that it does not list.
        missing: Files that it lists and that are not there.
        changed: Files with another content.
        gate_holds: Whether the gate of the run held.
        signature: ``none`` is there; it was ``not checked``, is ``valid``, or ``not valid``.
        holds: Whether all is as the run left it, the gate held, and the signature, where a key
            was given, is valid.
    """

    files: int
    added: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    gate_holds: bool
    signature: Literal["none", "not checked", "valid", "not valid"]
    holds: bool


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but the manifest and its signature, by path.

    Links to files are followed; links to folders, pipes and the like count as changed files.

    Raises:
        CheckpointError: If something in it cannot be read.
    """
    found = {}
    try:
        for root, folders, names in os.walk(folder, onerror=_raise):
            links = [name for name in folders if Path(root, name).is_symlink()]
            for path in (Path(root, name) for name in [*names, *links]):
                found[path.relative_to(folder).as_posix()] = _digest(path)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: a file of it cannot be read ({error.strerror}), so it cannot be compared "
            "with its manifest; give whoever verifies the right to read"
        ) from None
    return {path: found[path] for path in sorted(found) if path not in (MANIFEST, SIGNATURE)}


def _raise(error: OSError) -> NoReturn:
    raise error


def _digest(path: Path) -> str:
    if not path.is_file():
        return NO_FILE
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_manifest(folder: Path, report: dict[str, Any], *, weights_digest: str) -> None:
    """Write the manifest of everything that stands in the folder."""
    manifest = Manifest(
        schema_version=1,
        gate=report["gate"],
        provenance=report["provenance"],
        weights_digest=weights_digest,
        files=digests(folder),
    )
    text = json.dumps(manifest.model_dump(), indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a released folder.

    Raises:
        CheckpointError: If there is none, or it is not one that sani wrote.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder; give the folder that sani run wrote as sanitized/"
        )
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{folder}: {MANIFEST} cannot be read ({error.strerror}); sani verify takes a folder "
            "that sani run wrote as sanitized/"
        ) from None
    except ValidationError as error:
        raise CheckpointError(
            f"{folder}: {MANIFEST} is not a manifest of this version of sani "
            f"({error.error_count()} problems); take the folder from the run again"
        ) from None


def verify(folder: Path, *, public_key: Path | None = None) -> Verification:
    """Hash every file of a released folder again and compare with its manifest.

    Args:
        folder: The folder.
        public_key: PEM file of an elliptic curve key; if given, there must be a valid signature.

    Raises:
        CheckpointError: If there is no manifest, a file or the key cannot be read, or a key is
            given without `model-signing` being installed.
    """
    manifest = read_manifest(folder)
    there, listed = digests(folder), manifest.files
    added = sorted(there.keys() - listed.keys())
    missing = sorted(listed.keys() - there.keys())
    changed = sorted(n for n in there.keys() & listed.keys() if there[n] != listed[n])
    signature: Literal["none", "not checked", "valid", "not valid"]
    if public_key is not None:
        signature = "valid" if _is_signed(folder, public_key) else "not valid"
    else:
        signature = "not checked" if (folder / SIGNATURE).exists() else "none"
    gate_holds = manifest.gate.get("holds") is True
    return Verification(
        len(listed),
        tuple(map(_shown, added)),
        tuple(map(_shown, missing)),
        tuple(map(_shown, changed)),
        gate_holds,
        signature,
        gate_holds and not (added or missing or changed) and signature != "not valid",
    )


def _shown(name: str) -> str:
    """A file name that no terminal obeys and every stream can write."""
    return name if name.isprintable() else ascii(name)


def sign(folder: Path, private_key: Path) -> Path:
    """Sign a released folder, manifest included, with a key of one's own; no network.

    Args:
        folder: The folder; its files must be as its manifest says.
        private_key: PEM file of an elliptic curve key. Its password, if it has one, is read from
            the environment variable ``SANI_KEY_PASSWORD``.

    Returns:
        The signature's file, in the folder.

    Raises:
        CheckpointError: If the folder is not as its manifest says, the key cannot be read, or
            `model-signing` is not installed.

    Source: OpenSSF Model Signing v1, by `model-signing`.
    """
    found = verify(folder)
    if found.added or found.missing or found.changed:
        raise CheckpointError(
            f"{folder}: {len(found.added)} files were added, {len(found.missing)} are missing and "
            f"{len(found.changed)} changed since sani run wrote it, so it is not signed; see sani "
            "verify"
        )
    signing = _library("signing")
    password = os.environ.get(PASSWORD)
    try:
        signer = signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=password.encode() if password else None
        )
    except Exception as error:
        raise _bad_key(private_key, error) from None
    with new_file(folder / SIGNATURE, advice="free space or look at its rights") as partial:
        signer.set_hashing_config(_hashing()).sign(folder, partial)
    return folder / SIGNATURE


def _is_signed(folder: Path, public_key: Path) -> bool:
    verifying = _library("verifying")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise _bad_key(public_key, error) from None
    try:
        verifier.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except Exception:  # of the library, of protobuf, of cryptography: whatever it is, it is no
        return False
    return True


def _hashing() -> Any:
    """Every file is signed but the signature, those of git too; links to files are followed."""
    ignored = [SIGNATURE, PARTIAL.format(SIGNATURE)]
    config = _library("hashing").Config()
    return config.set_ignored_paths(paths=ignored, ignore_git_paths=False).set_allow_symlinks(True)


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{name}")
    except ImportError:
        raise CheckpointError(
            "signatures need model-signing, which is not installed; pip install 'sani-llm[sign]'"
        ) from None


def _bad_key(key: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"key {key} cannot be used ({type(error).__name__}); expected an elliptic curve key in a "
        f"PEM file, as of openssl ecparam -name prime256v1 -genkey, and its password in {PASSWORD}"
    )
