"""`sani attack`: a checkpoint attacked beside its controls, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sani.attacking.attack import attack
from sani.attacking.result import BASE, SANITIZED, UNSANITIZED, AttackResult
from sani.auditing.framing_search import worst_framing
from sani.machine.device import default_device, make_deterministic
from sani.machine.progress import OnNamedStep
from sani.models.bases import fit_base
from sani.models.checkpoint import load_checkpoint
from sani.models.folder import open_folder
from sani.pipeline.inputs import Documents, check_control, check_held_out, read_neighbours
from sani.recipe import AttackSettings, AuditSettings
from sani.runfolder import open_run
from sani.text.chat import lend_template


def attack_models(
    models: Mapping[str, Path],
    documents: Documents,
    settings: AttackSettings,
    *,
    framing: str,
    attacked: Sequence[str],
    seed: int,
    out: Path | None,
    resume: bool,
    on_step: OnNamedStep,
) -> AttackResult:
    """Attack a checkpoint and its controls.

    Args:
        models: Folder of each by name: ``sanitized``, and where there are such ``unsanitized`` and
            ``base``.
        documents: Corpus and held-out documents.
        settings: Which attacks.
        framing: Name of the special tokens around a document. ``auto`` tries all of them on the
            unsanitized model, without one on the sanitized model.
        attacked: Which of the models are attacked.
        seed: Of every draw.
        out: Folder of finished attacks, so that an interrupted attack can continue; none if None.
        resume: Continue an interrupted attack.
        on_step: Called with (what is done, steps done, steps in all).

    Raises:
        RecipeError: If the base is no control, or only the corpus has spans.
        CheckpointError: If the folder of the sanitized checkpoint holds other weights too.
        RunError: If ``out`` belongs to other models, documents or settings.
    """
    make_deterministic()
    check_held_out(documents.corpus, documents.held_out, name="--held-out")
    folders = {
        name: open_folder(path, base=models.get(BASE), more_weights=name != SANITIZED)
        for name, path in models.items()
    }
    loaded = {
        name: load_checkpoint(folder, device=default_device()) for name, folder in folders.items()
    }
    if BASE in loaded:
        fit_base(loaded[BASE], loaded[SANITIZED])
    for checkpoint in loaded.values():
        checkpoint.tokenizer = lend_template(checkpoint.tokenizer, loaded[SANITIZED].tokenizer)
    if BASE in loaded and UNSANITIZED in loaded:
        check_control(loaded[UNSANITIZED], loaded[BASE], name="--unsanitized", option="--base")
    audit_settings = AuditSettings()
    if framing == "auto":
        suspect = loaded.get(UNSANITIZED, loaded[SANITIZED])
        framing = worst_framing(suspect, documents.corpus, audit_settings).name

    def run_attacks(folder: Path | None) -> AttackResult:
        return attack(
            loaded,
            documents.corpus,
            settings,
            audit=audit_settings.model_copy(update={"framing": framing}),
            held_out=documents.held_out,
            neighbours=documents.neighbours or read_neighbours(settings),
            attacked=attacked,
            seed=seed,
            folder=folder,
            on_step=on_step,
        )

    if out is None:
        return run_attacks(None)
    inputs = {name: folder.digest for name, folder in folders.items()} | documents.digests()
    job = f"{settings.model_dump_json()} {framing} {' '.join(attacked)} {seed}\n"
    with open_run(out, recipe=job, inputs=inputs, resume=resume) as folder:
        if not folder.finished("attack"):
            outcomes = folder.make_private_folder("attack")
            folder.save("attack", run_attacks(outcomes).to_json())
        return folder.load_finished("attack", AttackResult)
