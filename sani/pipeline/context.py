"""The context of a run, which every stage reads: recipe, run folder, documents and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sani.auditing.record import CheckpointAudit
from sani.machine.progress import OnNamedStep, OnStep
from sani.pipeline.inputs import Documents
from sani.pipeline.models_of_run import ModelsOfRun
from sani.recipe import Recipe
from sani.runfolder import RunFolder


@dataclass(frozen=True)
class RunContext:
    """One run.

    Attributes:
        recipe: What to do.
        folder: The run folder; a stage is finished when its result file stands there.
        documents: The documents, scanned.
        models: The models of the run, each loaded once.
        on_step: Called with (stage, steps done, steps in all).
        on_stage: Called with the name of each stage as it begins.
        unread: Sentences on what was not read of the documents.
    """

    recipe: Recipe
    folder: RunFolder
    documents: Documents
    models: ModelsOfRun
    on_step: OnNamedStep
    on_stage: Callable[[str], None] = lambda stage: None
    unread: Sequence[str] = ()

    @property
    def framing(self) -> str:
        """Name of the framing under which the unsanitized checkpoint recites most."""
        return self.folder.load_finished("audit-before", CheckpointAudit).framing

    def progress(self, stage: str, *, within: str = "") -> OnStep:
        """Return ``on_step`` of one stage.

        Args:
            stage: Name of the stage.
            within: Name of the rung or round that the stage is part of.
        """
        name = f"{within}, {stage}" if within else stage
        return lambda done, total: self.on_step(name, done, total)
