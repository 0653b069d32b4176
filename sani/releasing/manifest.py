"""The manifest of a released checkpoint: the digest of every file, and where they came from.

Whoever can change a file can change the manifest too. Only a signature shows that, because it
needs a key that they do not have.
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
from sani.recipe.weaker_limits import weaker_limits
from sani.releasing.verdict import verdict_problems
from sani.reporting.schema import Gate, Report

MANIFEST = "manifest.json"
REPORT = "report.json"
SIGNATURE = "model.sig"
PASSWORD = "SANI_KEY_PASSWORD"
NO_FILE = "not a regular file"


class Manifest(BaseModel):
    """Content of ``manifest.json``.

    Attributes:
        schema_version: 2.
        gate: The run's verdict, limit by limit.
        gate_settings: The limits as the recipe sets them.
        report: SHA-256 of the run's ``report.json``.
        provenance: Seed, versions, and digests of recipe and corpus, keyed by the run's secret.
        weights_digest: `Checkpoint.weights_digest` of the audited weights.
        files: SHA-256 of every other file, by its path in the folder.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_version: Literal[2]
    gate: Gate
    gate_settings: dict[str, Any]
    report: str
    provenance: dict[str, Any]
    weights_digest: str
    files: dict[str, str]


@dataclass(frozen=True)
class Verification:
    """A released folder compared with its manifest.

    Attributes:
        files: Number of files that the manifest lists.
        added: Files that it does not list.
        missing: Files that it lists and that do not exist.
        changed: Files with another content.
        gate_holds: True if the gate of the run held, by its verdict and by every check of it.
        problems: Sentences: where the verdict does not follow from the checks, or the report that
            stands beside the folder is not the one that the manifest names.
        weaker_limits: Limits that ask for less than the defaults do, and settings by which the
            audit finds less, a phrase each.
        report: Whether ``report.json`` stands beside the folder, and as it was written.
        signature: ``none`` if there is no signature; ``not checked`` without a key.
        holds: True if no file was added, is missing or changed, the gate held, there is no problem,
            and the signature, where a key was given, is valid.
    """

    files: int
    added: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    gate_holds: bool
    problems: tuple[str, ...]
    weaker_limits: tuple[str, ...]
    report: Literal["not beside it", "as written", "changed"]
    signature: Literal["none", "not checked", "valid", "not valid"]
    holds: bool


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder but the manifest and its signature, by path.

    Links to files are followed. Links to folders, pipes and the like count as changed files.

    Raises:
        CheckpointError: If a file in it cannot be read.
    """
    all_digests = {}
    try:
        for root, folders, names in os.walk(folder, onerror=_raise):
            links = [name for name in folders if Path(root, name).is_symlink()]
            for path in (Path(root, name) for name in [*names, *links]):
                all_digests[path.relative_to(folder).as_posix()] = file_digest(path)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: a file of it cannot be read ({error.strerror}), so it cannot be compared "
            "with its manifest; give whoever verifies the right to read"
        ) from None
    return {
        path: all_digests[path] for path in sorted(all_digests) if path not in (MANIFEST, SIGNATURE)
    }


def _raise(error: OSError) -> NoReturn:
    raise error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or `NO_FILE` of what is none."""
    if not path.is_file():
        return NO_FILE
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_manifest(folder: Path, report: Report, *, weights_digest: str) -> None:
    """Write the manifest of all files in the folder.

    Args:
        folder: The folder, complete but for this file.
        report: Content of ``report.json``.
        weights_digest: `Checkpoint.weights_digest` of the weights in it.
    """
    manifest = Manifest(
        schema_version=2,
        gate=report.gate,
        gate_settings=report.gate_settings.model_dump(mode="json"),
        report=report_digest(report),
        provenance=report.provenance.model_dump(mode="json"),
        weights_digest=weights_digest,
        files=digests(folder),
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a released folder.

    Raises:
        CheckpointError: If there is none, it is not one that sani wrote, or it holds no check.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder; give the folder that sani run wrote as sanitized/"
        )
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
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
    if not manifest.gate.checks:
        raise CheckpointError(
            f"{folder}: {MANIFEST} holds no check of the gate, so nothing says that anything was "
            "measured; take the folder from the run again"
        )
    return manifest


def report_digest(report: Report) -> str:
    """Return the SHA-256 of ``report.json``."""
    return hashlib.sha256(report.text().encode()).hexdigest()


def verify(folder: Path, *, public_key: Path | None = None) -> Verification:
    """Hash every file of a released folder again, and derive the verdict again from its checks.

    The digests are compared with the manifest's. So is ``report.json``, where it stands beside the
    folder, as in a run folder.

    Args:
        folder: The folder.
        public_key: PEM file of an elliptic curve key; if given, there must be a valid signature.

    Raises:
        CheckpointError: If there is no manifest, a file or the key cannot be read, or a key is
            given without `model-signing` being installed.
    """
    manifest = read_manifest(folder)
    present, listed = digests(folder), manifest.files
    added = sorted(present.keys() - listed.keys())
    missing = sorted(listed.keys() - present.keys())
    changed = sorted(n for n in present.keys() & listed.keys() if present[n] != listed[n])
    signature: Literal["none", "not checked", "valid", "not valid"]
    if public_key is not None:
        signature = "valid" if _is_signed(folder, public_key) else "not valid"
    else:
        signature = "not checked" if (folder / SIGNATURE).exists() else "none"
    problems = verdict_problems(manifest.gate, manifest.gate_settings)
    gate_holds = manifest.gate.holds and not problems
    if not _looks_like_signature(folder / SIGNATURE):
        problems.append(f"{SIGNATURE} is no signature; nobody may take it for one.")
    report_state = _state_of_report(folder.absolute().parent / REPORT, manifest)
    if report_state == "changed":
        problems.append(
            f"{REPORT} beside the folder is not the one that the manifest names; it was changed, "
            "or it is of another run."
        )
    return Verification(
        len(listed),
        tuple(map(_shown, added)),
        tuple(map(_shown, missing)),
        tuple(map(_shown, changed)),
        gate_holds,
        tuple(problems),
        tuple(dict.fromkeys([*weaker_limits(manifest.gate_settings), *manifest.gate.weaker])),
        report_state,
        signature,
        gate_holds and not (added or missing or changed or problems) and signature != "not valid",
    )


def _looks_like_signature(file: Path) -> bool:
    """Return whether a file may be a signature, which is a JSON object, or is not there at all."""
    if not os.path.lexists(file):
        return True
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _state_of_report(
    file: Path, manifest: Manifest
) -> Literal["not beside it", "as written", "changed"]:
    """Compare the report beside a released folder with the manifest: its digest, and its gate."""
    if not file.is_file():
        return "not beside it"
    try:
        content = file.read_bytes()
        gate = json.loads(content)["gate"]
    except (OSError, ValueError, LookupError, TypeError):
        return "changed"
    same = hashlib.sha256(content).hexdigest() == manifest.report
    return "as written" if same and gate == manifest.gate.model_dump(mode="json") else "changed"


def _shown(name: str) -> str:
    """Return a file name without control characters, which a terminal would obey."""
    return name if name.isprintable() else ascii(name)


def sign(folder: Path, private_key: Path) -> Path:
    """Sign a released folder, manifest included, with the user's own key; no network is used.

    Args:
        folder: The folder; its files must be as its manifest says.
        private_key: PEM file of an elliptic curve key. Its password, if it has one, is read from
            the environment variable ``SANI_KEY_PASSWORD``.

    Returns:
        Path of the signature, a file in the folder.

    Raises:
        CheckpointError: If the folder is not as its manifest says, the key cannot be read, or
            `model-signing` is not installed.

    Source: OpenSSF Model Signing v1, by `model-signing`.
    """
    verification = verify(folder)
    added, missing, changed = verification.added, verification.missing, verification.changed
    if added or missing or changed:
        raise CheckpointError(
            f"{folder}: files added: {len(added)}, missing: {len(missing)}, changed: "
            f"{len(changed)} since sani run wrote it, so it is not signed; see sani verify"
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
    except Exception:  # of the library, of protobuf or of cryptography: none of them means valid
        return False
    return True


def _hashing() -> Any:
    """Return the settings of the hashing: all files but the signature, links to files followed."""
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
