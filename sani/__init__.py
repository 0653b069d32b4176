"""Audit, erase and repair language models that recite identifiers of people in their data.

The names below are loaded when they are first used: importing sani imports no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("sani-llm")

_HOME = {
    "AttackSettings": "sani.recipe",
    "AuditSettings": "sani.recipe",
    "Corpus": "sani.corpus.documents",
    "Document": "sani.corpus.documents",
    "EraseSettings": "sani.recipe",
    "Recipe": "sani.recipe",
    "RepairSettings": "sani.recipe",
    "SaniError": "sani.errors",
    "ScanResult": "sani.scanning.scan",
    "ScanSettings": "sani.recipe",
    "Span": "sani.corpus.documents",
    "attack": "sani.attacking.attack",
    "audit": "sani.auditing.audit",
    "detect": "sani.scanning.detection",
    "erase": "sani.erasing.erase",
    "load_checkpoint": "sani.models.checkpoint",
    "load_recipe": "sani.recipe",
    "read_corpus": "sani.corpus.readers",
    "repair": "sani.repairing.repair",
    "run": "sani.pipeline.run",
    "save_checkpoint": "sani.models.checkpoint",
    "scan": "sani.scanning.scan",
}
__all__ = [
    "AttackSettings",
    "AuditSettings",
    "Corpus",
    "Document",
    "EraseSettings",
    "Recipe",
    "RepairSettings",
    "SaniError",
    "ScanResult",
    "ScanSettings",
    "Span",
    "attack",
    "audit",
    "detect",
    "erase",
    "load_checkpoint",
    "load_recipe",
    "read_corpus",
    "repair",
    "run",
    "save_checkpoint",
    "scan",
]

if TYPE_CHECKING:
    from sani.attacking.attack import attack
    from sani.auditing.audit import audit
    from sani.corpus.documents import Corpus, Document, Span
    from sani.corpus.readers import read_corpus
    from sani.erasing.erase import erase
    from sani.errors import SaniError
    from sani.models.checkpoint import load_checkpoint, save_checkpoint
    from sani.pipeline.run import run
    from sani.recipe import (
        AttackSettings,
        AuditSettings,
        EraseSettings,
        Recipe,
        RepairSettings,
        ScanSettings,
        load_recipe,
    )
    from sani.repairing.repair import repair
    from sani.scanning.detection import detect
    from sani.scanning.scan import ScanResult, scan


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'sani' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
