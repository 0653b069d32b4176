"""Relearning: a little fine-tuning on something else may bring back what was removed.

Threat: the adversary fine-tunes the sanitized weights on harmless text, on the few records that
they hold anyway, or on the forgotten documents with other values for the identifiers. What was
hidden rather than removed comes back, also where it was not trained on.

Cost: for each text and learning rate the steps of training, an audit of the rest, and a shorter
audit for each point of the curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil

from sani.attacking.context import AttackContext, Outcome, duplicate, plain, surrogated
from sani.attacking.result import RelearnPoint
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus, Place
from sani.models.checkpoint import Checkpoint
from sani.recipe import MaskObjective, RelearnSettings, RepairSettings
from sani.repairing.repair import train
from sani.text.batches import make_batches
from sani.text.tokens import encode


def relearn(
    model: Checkpoint, context: AttackContext, settings: RelearnSettings
) -> Iterator[Outcome]:
    """Fine-tune a copy, and audit the occurrences that it was not trained on.

    The audited occurrences are the same for every text: those in documents of other subjects than
    the ones that the adversary holds, and whose value stands nowhere in the text trained on.

    Source: Hu et al. 2024 (2406.13356), Lucki et al. 2024 (2409.18025), Deeb & Roger 2024
    (2410.08827), Chen et al. 2023 (2310.15469). Deviations: verdicts by teacher forcing instead of
    generation; all weights are trained, with the repair's engine and nothing masked.
    """
    held_documents, rest = _split(context, settings.share)
    texts: dict[str, Callable[[], Corpus | None]] = {
        "harmless": lambda: context.held_out,
        "part": lambda: Corpus([context.annotated[number] for number in held_documents]),
        "surrogates": lambda: surrogated(context.annotated, context.maker)[0],
    }
    for name in settings.texts:
        documents = texts[name]()
        if documents is None or not len(documents):
            yield Outcome(name, not_run="there are no held-out documents (corpus.held_out)")
            continue
        places = context.not_in(documents, rest)
        if not places:
            yield Outcome(name, not_run="every identifier of the rest stands in what is trained on")
            continue
        start = _point(0, context.score(model, places, decoys=False))
        for learning_rate in settings.learning_rates:
            copy, curve = duplicate(model), [start]
            steps = _train_(copy, documents, context, settings, learning_rate, places, curve)
            occurrences = context.score(copy, places)
            curve.append(_point(steps, occurrences))
            variant = f"{name}, learning rate {learning_rate:g}"
            yield Outcome(variant, occurrences, places, curve=tuple(curve))


def _split(context: AttackContext, share: float) -> tuple[list[int], list[Place]]:
    """Draw the documents that the adversary holds, and return the other subjects' occurrences."""
    subjects = sorted({document.subject_id for document in context.corpus})
    context.chance("subjects held").shuffle(subjects)
    held_subjects = set(subjects[: max(1, round(share * len(subjects)))])
    held_documents = [
        n for n, document in enumerate(context.corpus) if document.subject_id in held_subjects
    ]
    return held_documents, [p for p in context.places if p[0] not in set(held_documents)]


def _train_(
    copy: Checkpoint,
    documents: Corpus,
    context: AttackContext,
    settings: RelearnSettings,
    learning_rate: float,
    places: Sequence[Place],
    curve: list[RelearnPoint],
) -> int:
    """In place: train the copy, and extend the curve by all of its points but the last.

    Returns:
        The steps made: those of the settings, rounded up to whole epochs.
    """
    batches = make_batches(
        encode(documents, copy.tokenizer),
        context.framing(copy),
        context_tokens=copy.context_tokens,
        batch_tokens=settings.batch_tokens,
    )
    if len(batches) > settings.steps:  # an epoch would be longer than the attack: less text
        documents = Corpus(documents[: max(1, len(documents) * settings.steps // len(batches))])
    epochs = ceil(settings.steps / min(len(batches), settings.steps))
    schedule = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"),
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=settings.batch_tokens,
        pack=False,  # so that an epoch has the steps counted above
    )

    def on_step(done: int, total: int) -> None:
        marks = {ceil(total * point / settings.points) for point in range(1, settings.points)}
        if done in marks and done < total:
            copy.model.eval()
            # A training that diverges begins anew: the points of its first attempt are dropped.
            curve[:] = [point for point in curve if point.step < done]
            curve.append(_point(done, context.score(copy, places, decoys=False)))
            copy.model.train()

    return train(
        copy,
        plain(documents),
        schedule,
        framing=context.audit.framing,
        seed=context.seed,
        on_step=on_step,
    ).steps


def _point(step: int, occurrences: Occurrences) -> RelearnPoint:
    """Return extraction after so many steps, as shares of the occurrences scored."""
    scored = occurrences.scored
    return RelearnPoint(
        step,
        greedy=float(occurrences.greedy[scored].mean()),
        discoverable=float(occurrences.discoverable[scored].mean()),
    )
