"""Relearning: a little fine-tuning on something else may bring back what was removed.

Threat: whoever has the sanitized weights fine-tunes them, on harmless text, on the few records
that they hold anyway, or on the forgotten documents with other values for the identifiers. What
was hidden rather than removed returns, also where it was not trained on.

Cost: for each text and learning rate the declared steps of training, an audit of the rest, and a
shorter one for each point of the curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

from sani.attacking.context import AttackContext, Outcome, duplicate, plain, surrogated
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus, Place
from sani.models.checkpoint import Checkpoint
from sani.recipe import MaskObjective, RelearnSettings, RepairSettings
from sani.repairing.repair import train
from sani.text.batches import make_batches
from sani.text.tokens import encode


def relearn(
    model: Checkpoint, scene: AttackContext, settings: RelearnSettings
) -> Iterator[Outcome]:
    """Fine-tune a copy and audit what it was not trained on, on the way and at the end.

    The rest is always the same: occurrences in documents of other subjects than those of the part
    that the adversary holds, whose value stands nowhere in what is trained on.

    Source: Hu et al. 2024 (2406.13356), Lucki et al. 2024 (2409.18025), Deeb & Roger 2024
    (2410.08827), Chen et al. 2023 (2310.15469). Deviations: teacher-forced verdicts instead of
    generation; all weights are trained, with the repair's engine and nothing masked.
    """
    held, rest = _split(scene, settings.share)
    texts: dict[str, Callable[[], Corpus | None]] = {
        "harmless": lambda: scene.held_out,
        "part": lambda: Corpus([scene.annotated[number] for number in held]),
        "surrogates": lambda: surrogated(scene.annotated, scene.maker)[0],
    }
    for name in settings.texts:
        told = texts[name]()
        if told is None or not len(told):
            yield Outcome(name, not_run="there are no held-out documents (corpus.held_out)")
            continue
        places = scene.untold(rest, told)
        if not places:
            yield Outcome(name, not_run="every identifier of the rest stands in what is trained on")
            continue
        start = _point(0, scene.score(model, places, decoys=False))
        for rate in settings.learning_rates:
            copy, curve = duplicate(model), [start]
            steps = _train(copy, told, scene, settings, rate, places, curve)
            found = scene.score(copy, places)
            curve.append(_point(steps, found))
            yield Outcome(f"{name}, learning rate {rate:g}", found, places, curve=curve)


def _split(scene: AttackContext, share: float) -> tuple[list[int], list[Place]]:
    """Documents of the subjects that the adversary holds, and the occurrences of all others."""
    subjects = sorted({document.subject_id for document in scene.corpus})
    scene.chance("subjects held").shuffle(subjects)
    held = set(subjects[: max(1, round(share * len(subjects)))])
    numbers = [n for n, document in enumerate(scene.corpus) if document.subject_id in held]
    return numbers, [place for place in scene.places if place[0] not in set(numbers)]


def _train(
    copy: Checkpoint,
    told: Corpus,
    scene: AttackContext,
    settings: RelearnSettings,
    rate: float,
    places: Sequence[Place],
    curve: list[dict[str, Any]],
) -> int:
    """In place: the declared steps, up to whole epochs; all but the last point of the curve."""
    batches = make_batches(
        encode(told, copy.tokenizer),
        scene.frame(copy),
        context_tokens=copy.context_tokens,
        batch_tokens=settings.batch_tokens,
    )
    if len(batches) > settings.steps:  # as much of the text as the steps are for
        told = Corpus(told[: max(1, len(told) * settings.steps // len(batches))])
    epochs = ceil(settings.steps / min(len(batches), settings.steps))
    schedule = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"),
        epochs=epochs,
        learning_rate=rate,
        batch_tokens=settings.batch_tokens,
        pack=False,  # so that an epoch has the steps counted above
    )

    def on_step(done: int, total: int) -> None:
        marks = {ceil(total * point / settings.points) for point in range(1, settings.points)}
        if done in marks and done < total:
            copy.model.eval()
            curve[:] = [
                point for point in curve if point["step"] < done
            ]  # of a training begun anew
            curve.append(_point(done, scene.score(copy, places, decoys=False)))
            copy.model.train()

    return train(
        copy, plain(told), schedule, framing=scene.framing, seed=scene.seed, on_step=on_step
    ).steps


def _point(step: int, found: Occurrences) -> dict[str, Any]:
    """Extraction after so many steps, as shares of the occurrences scored."""
    scored = found.scored
    shares = {
        name: float(getattr(found, name)[scored].mean()) for name in ("greedy", "discoverable")
    }
    return {"step": step, **shares}
