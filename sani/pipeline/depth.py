"""The stage that measures how deep the erasure goes; only where the recipe asks for it."""

from __future__ import annotations

from dataclasses import asdict

from sani.auditing.record import load_verdicts
from sani.auditing.unlearning_depth import (
    Models,
    UnlearningDepth,
    drawn_places,
    unlearning_depth,
)
from sani.errors import RunError
from sani.machine import distributed
from sani.pipeline.context import RunContext
from sani.text.chat import rendered
from sani.text.framing import framing_of

STAGE = "unlearning-depth"


def run_depth(run: RunContext) -> None:
    """Measure the unlearning depth of the latest checkpoint on a sample of what is judged.

    Raises:
        RunError: If the verdicts on the unsanitized checkpoint are gone.
    """
    if run.recipe.audit.unlearning_depth and not run.folder.finished(STAGE):
        # Every process loads the models, and the main one measures.
        models = Models(run.models.unsanitized, run.models.latest, run.models.base)
        framing = run.framing
        verdicts = load_verdicts(run.folder, "before")
        if verdicts is None:
            private = run.folder.private
            raise RunError(f"{private}: audit-before.npz is gone; start again in another --out")
        corpus = rendered(run.documents.corpus, models.unsanitized.tokenizer)
        settings, seed = run.recipe.audit, run.recipe.seed

        def measure() -> UnlearningDepth:
            return unlearning_depth(
                models,
                corpus,
                drawn_places(
                    corpus,
                    verdicts.records,
                    run.recipe.gate.kinds,
                    limit=settings.depth_occurrences,
                    seed=seed,
                ),
                framing=framing_of(models.unsanitized, framing),
                batch_tokens=settings.batch_tokens,
                seed=seed,
                on_step=run.progress(STAGE),
            )

        run.folder.save(STAGE, asdict(distributed.on_main(measure)))
