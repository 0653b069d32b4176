"""Audit, erase and repair language models that recite identifiers of people in their data.

The names below are loaded when they are first used: importing sani imports no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("sani-llm")

# Public name -> module that defines it.
_MODULE_OF = {
    "AttackError": "sani.errors",
    "AttackResult": "sani.attacking.result",
    "AttackSettings": "sani.recipe",
    "AuditError": "sani.errors",
    "AuditResult": "sani.auditing.audit",
    "AuditSettings": "sani.recipe",
    "Checkpoint": "sani.models.checkpoint",
    "CheckpointError": "sani.errors",
    "Corpus": "sani.corpus.documents",
    "CorpusError": "sani.errors",
    "Document": "sani.corpus.documents",
    "EraseResult": "sani.erasing.erase",
    "EraseSettings": "sani.recipe",
    "GateSettings": "sani.recipe",
    "Recipe": "sani.recipe",
    "RecipeError": "sani.errors",
    "RepairError": "sani.errors",
    "RepairResult": "sani.repairing.repair",
    "RepairSettings": "sani.recipe",
    "RunError": "sani.errors",
    "RunResult": "sani.pipeline.run",
    "SaniError": "sani.errors",
    "ScanError": "sani.errors",
    "ScanResult": "sani.scanning.scan",
    "ScanSettings": "sani.recipe",
    "SelectionError": "sani.errors",
    "Span": "sani.corpus.documents",
    "UnsavedError": "sani.errors",
    "UnsupportedModelError": "sani.errors",
    "UsageError": "sani.errors",
    "WriteError": "sani.errors",
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
    "AttackError",
    "AttackResult",
    "AttackSettings",
    "AuditError",
    "AuditResult",
    "AuditSettings",
    "Checkpoint",
    "CheckpointError",
    "Corpus",
    "CorpusError",
    "Document",
    "EraseResult",
    "EraseSettings",
    "GateSettings",
    "Recipe",
    "RecipeError",
    "RepairError",
    "RepairResult",
    "RepairSettings",
    "RunError",
    "RunResult",
    "SaniError",
    "ScanError",
    "ScanResult",
    "ScanSettings",
    "SelectionError",
    "Span",
    "UnsavedError",
    "UnsupportedModelError",
    "UsageError",
    "WriteError",
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
    from sani.attacking.result import AttackResult
    from sani.auditing.audit import AuditResult, audit
    from sani.corpus.documents import Corpus, Document, Span
    from sani.corpus.readers import read_corpus
    from sani.erasing.erase import EraseResult, erase
    from sani.errors import (
        AttackError,
        AuditError,
        CheckpointError,
        CorpusError,
        RecipeError,
        RepairError,
        RunError,
        SaniError,
        ScanError,
        SelectionError,
        UnsavedError,
        UnsupportedModelError,
        UsageError,
        WriteError,
    )
    from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from sani.pipeline.run import RunResult, run
    from sani.recipe import (
        AttackSettings,
        AuditSettings,
        EraseSettings,
        GateSettings,
        Recipe,
        RepairSettings,
        ScanSettings,
        load_recipe,
    )
    from sani.repairing.repair import RepairResult, repair
    from sani.scanning.detection import detect
    from sani.scanning.scan import ScanResult, scan


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sani' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """Return the public names, those included that are not loaded yet."""
    return __all__
