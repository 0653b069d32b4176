"""What each step reads: batches, with all that can be computed once for all epochs.

Where the input changes with the epoch (surrogates, decoys, masks) nothing but the documents stays.
Of several ranks each has the same steps, and of each step's batches its own rows, maybe none.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sani.corpus.documents import Corpus
from sani.errors import RepairError
from sani.machine import distributed
from sani.machine.device import token_batches
from sani.models.checkpoint import Checkpoint
from sani.models.families import family_of, is_masked, num_layers
from sani.recipe import AnchorObjective, RepairSettings
from sani.repairing.frozen_layers import FrozenPart, hidden_states
from sani.repairing.mlm_masking import check_masked, free_words, masked_batches
from sani.repairing.objective import Example
from sani.repairing.surrogates import Surrogates
from sani.repairing.teacher_states import counterfactual_states, states_at
from sani.text.batches import Batch, make_batches
from sani.text.tokens import Encoded, Framing, encode

UNTAUGHT = ("mask", "unlikelihood", "gradient_difference")  # need no other model
MEMORY_BYTES = 2**31  # that `auto` fills before it turns to the disk
SHARE_OF_DECOYS = 0.5
SAME = 1e-3  # relative; float16 rounds at 5e-4


@dataclass(frozen=True)
class Teachers:
    """Models that are not trained, where the settings need them."""

    base: Any = None
    unsanitized: Any = None


class Examples:
    """The steps of one epoch, by number."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        settings: RepairSettings,
        framing: Framing,
        *,
        teachers: Teachers,
        frozen: FrozenPart | None,
        folder: Path,
        seed: int,
    ) -> None:
        """Tokenize the documents and compute what stays the same.

        Args:
            checkpoint: The model to repair.
            corpus: The documents.
            settings: Of the repair.
            framing: What stands before each document.
            teachers: Models that are not trained.
            frozen: The layers that are not trained, or None.
            folder: Where states are kept if memory has no room.
            seed: Of surrogates and masks.
        """
        two_texts = checkpoint.family.objective == "seq2seq"
        if two_texts:
            frozen = None  # states are not kept: two stacks, of two lengths
        self._masked = checkpoint.family.objective == "masked"
        if self._masked and checkpoint.tokenizer.mask_token_id is None:
            raise RepairError(
                "the model predicts masked tokens and the tokenizer has no mask token; give the "
                "tokenizer that it was trained with"
            )
        self._seed = seed
        self._checkpoint = checkpoint
        self._settings = settings
        self._framing = framing
        self._teachers = teachers
        self._frozen = frozen
        self._surrogates = Surrogates(corpus, seed=seed)
        self._encoded = encode(corpus, checkpoint.tokenizer)
        objective = settings.identifier_loss
        self._to = objective.to if isinstance(objective, AnchorObjective) else objective.kind
        self._replacing = settings.context == "surrogate" or self._to == "decoys"
        self._changing = self._replacing or self._masked
        self._groups = self._documents_by_step() if self._changing else []
        packs = settings.pack and not (self._masked or two_texts)
        self._pack = packs and distributed.on_main(self._packs_exactly)
        self._batches = [] if self._changing else self._mine(self._make_batches(self._encoded))
        self._taught = [] if self._changing else self._all_taught()
        own = f"states-{distributed.number()}" if distributed.number() else "states"
        self._store = _Store(folder / own, self._place(folder))
        if self._store.place != "none":
            for number, batch in enumerate(self._batches):
                self._store.save(number, self._states(batch))

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self._groups) or len(self._batches)

    @property
    def has_ordinary_tokens(self) -> bool:
        """Whether there is anything to train on."""
        if self._masked:
            return any(free_words(item) for item in self._encoded)
        if self._changing:
            return any(False in item.in_span() for item in self._encoded)
        return any(distributed.gather(any(bool(batch.ordinary.any()) for batch in self._batches)))

    @property
    def num_tokens(self) -> int:
        """Tokens of the documents."""
        return sum(len(item.ids) for item in self._encoded)

    @property
    def place(self) -> str:
        """Where the states of the untrained layers are kept."""
        return self._store.place

    def read(self, number: int, *, epoch: int) -> list[Example]:
        """The batches of one step; several where replaced documents outgrow the budget."""
        if self._changing:
            return self._drawn(self._groups[number], epoch)
        batch, taught = self._batches[number], self._taught[number]
        kept = self._store.load(number)
        if self._store.place == "none" and self._settings.retain_weight > 0 and len(batch.ids):
            kept = {"skill": states_at(self._teachers.unsanitized, batch, batch.ordinary)}
        return [Example(batch, taught, kept.get("skill"), kept.get("frozen"))]

    def _make_batches(self, encoded: Sequence[Encoded], *, pack: bool | None = None) -> list[Batch]:
        return make_batches(
            encoded,
            self._framing,
            context_tokens=self._checkpoint.context_tokens,
            batch_tokens=self._settings.batch_tokens,
            pack=self._pack if pack is None else pack,
        )

    def _mine(self, batches: Sequence[Batch]) -> list[Batch]:
        """This rank's rows of all batches."""
        return [batch.rows(distributed.part(len(batch.ids))) for batch in batches]

    def _documents_by_step(self) -> list[list[int]]:
        around = len(self._framing.prefix) + len(self._framing.suffix)
        lengths = [len(item.ids) + around for item in self._encoded]
        return token_batches(lengths, budget=self._settings.batch_tokens)

    def _all_taught(self) -> list[Tensor | None]:
        """The anchor's states at identifier positions of each batch, [samples, n, hidden]."""
        objective = self._settings.identifier_loss
        if self._to in UNTAUGHT:
            return [None] * len(self._batches)
        if not isinstance(objective, AnchorObjective) or objective.to != "counterfactual":
            return [self._taught_at(batch) for batch in self._batches]
        mine = {place[1] for batch in self._batches for place in batch.occurrences.tolist()}
        states = counterfactual_states(
            self._teachers.unsanitized,
            self._checkpoint.tokenizer,
            [item for item in self._encoded if item.document in mine],
            self._surrogates,
            make_batches=self._make_batches,
            samples=objective.samples,
        )
        return [
            torch.stack([states[document, token] for _, document, _, token in found], dim=1)
            if (found := batch.occurrences.tolist())
            else None
            for batch in self._batches
        ]

    def _taught_at(self, batch: Batch) -> Tensor | None:
        if self._to in (*UNTAUGHT, "decoys") or not batch.identifier.any():
            return None
        teacher = self._teachers.base if self._to == "base" else self._teachers.unsanitized
        return states_at(teacher, batch, batch.identifier)[None]

    def _states(self, batch: Batch) -> dict[str, Tensor]:
        """What is kept of a batch beside the anchor."""
        found: dict[str, Tensor] = {}
        if not len(batch.ids):
            return found
        if self._frozen is not None:
            found["frozen"] = self._frozen.states(batch.to(self._checkpoint.model.device)).cpu()
        if self._settings.retain_weight > 0:
            skill = states_at(self._teachers.unsanitized, batch, batch.ordinary)
            found["skill"] = skill.cpu()
        return found

    def _place(self, folder: Path) -> str:
        """Where states are kept: what was asked for, or what has room.

        Each rank may find another place, and no matter: what is kept is what would be computed.
        """
        asked = self._settings.activation_cache
        skill = self._settings.retain_weight > 0
        if not self._batches or asked == "none" or not (self._frozen or skill):
            return "none"
        shortest = next((batch for batch in reversed(self._batches) if len(batch.ids)), None)
        if self._frozen and (shortest is None or not self._skips_exactly(shortest)):
            return "none"
        if asked != "auto":
            return asked
        model = self._checkpoint.model
        states = sum(batch.ids.numel() for batch in self._batches) * (bool(self._frozen) + skill)
        size = states * model.config.hidden_size * model.dtype.itemsize
        if size <= MEMORY_BYTES:
            return "memory"
        return "disk" if shutil.disk_usage(folder).free > 2 * size else "none"

    def _skips_exactly(self, batch: Batch) -> bool:
        """Whether the model gives the same with its untrained layers skipped: some may be wired."""
        if self._frozen is None:
            return True
        batch = batch.to(self._checkpoint.model.device)
        self._checkpoint.model.eval()
        with torch.no_grad():
            plain = hidden_states(self._checkpoint.model, batch)
            with self._frozen.skipped(self._frozen.states(batch)):
                skipped = hidden_states(self._checkpoint.model, batch)
        return bool((plain - skipped).abs().max() <= SAME * plain.abs().max())

    def _packs_exactly(self) -> bool:
        """Whether a document behind another is read as if alone: some families go by their own."""
        model = self._checkpoint.model
        for batch in self._make_batches(self._encoded, pack=True):
            if batch.positions is not None:
                row = int((batch.positions == 0).sum(dim=1).argmax())
                starts = (batch.positions[row] == 0).nonzero().flatten().tolist()
                second = slice(starts[1], [*starts, batch.ids.shape[1]][2])
                alone = replace(batch, ids=batch.ids[row : row + 1, second], positions=None)
                model.eval()
                with torch.no_grad():
                    there = hidden_states(model, batch.to(model.device))[row, second]
                    expected = hidden_states(model, alone.to(model.device))[0]
                return bool((there - expected).abs().max() <= SAME * expected.abs().max())
        return False

    def _drawn(self, documents: Sequence[int], epoch: int) -> list[Example]:
        """Batches of documents with this epoch's values and masks."""
        encoded = [self._encoded[number] for number in documents]
        replaced: dict[int, list[bool]] = {}
        if self._replacing:
            encoded, replaced = self._replaced(documents, epoch)
        examples = []
        batches = self._mask(encoded, epoch) if self._masked else self._make_batches(encoded)
        for batch in self._mine(batches):
            if self._to == "decoys":
                batch = _only(batch, replaced)
            skill = None
            if self._settings.retain_weight > 0 and len(batch.ids):
                skill = states_at(self._teachers.unsanitized, batch, batch.ordinary)
            examples.append(Example(batch, self._taught_at(batch), skill))
        return examples

    def _replaced(
        self, documents: Sequence[int], epoch: int
    ) -> tuple[list[Encoded], dict[int, list[bool]]]:
        """Documents with this epoch's values, and for each of its spans whether it has one."""
        share = 1.0 if self._settings.context == "surrogate" else SHARE_OF_DECOYS
        encoded, replaced = [], {}
        for number in documents:
            document, replaced[number] = self._surrogates.document(number, round=epoch, share=share)
            (item,) = encode(Corpus([document]), self._checkpoint.tokenizer)
            encoded.append(replace(item, document=number))
        return encoded, replaced

    def _mask(self, encoded: Sequence[Encoded], epoch: int) -> list[Batch]:
        return masked_batches(
            encoded,
            self._framing,
            mask=self._checkpoint.tokenizer.mask_token_id,
            identifier_loss=self._to != "mask",
            chance=lambda document: random.Random(f"{self._seed}\0{epoch}\0{document}"),
            context_tokens=self._checkpoint.context_tokens,
            batch_tokens=self._settings.batch_tokens,
        )


def check_settings(settings: RepairSettings, config: Any) -> None:
    """Refuse what a model of this kind cannot be repaired with.

    Raises:
        RepairError: If the settings ask for it.
    """
    layers = num_layers(config)
    if settings.last_layers is not None and settings.last_layers > layers:
        raise RepairError(
            f"repair.last_layers: got {settings.last_layers}, but the model has {layers} layers"
        )
    if is_masked(config):
        check_masked(settings)
    if family_of(config).objective == "seq2seq":
        _check_two_texts(settings)


def _check_two_texts(settings: RepairSettings) -> None:
    """Refuse what replaces identifiers: the text that the encoder reads has no spans.

    Raises:
        RepairError: If the settings ask for it.
    """
    objective = settings.identifier_loss
    replacing = isinstance(objective, AnchorObjective) and objective.to in (
        "decoys",
        "counterfactual",
    )
    if replacing or settings.context == "surrogate":
        raise RepairError(
            "repair: identifiers in source_text are not marked, so they cannot be replaced along "
            "with those in text; use context: keep, and mask, unlikelihood, npo, "
            "gradient_difference or an anchor to base or self"
        )


def _only(batch: Batch, replaced: dict[int, list[bool]]) -> Batch:
    """The batch without loss at the values that stayed."""
    kept = torch.tensor(
        [replaced[document][span] for _, document, span, _ in batch.occurrences.tolist()],
        dtype=torch.bool,
    )
    identifier = batch.identifier.clone()
    identifier[batch.identifier] = kept
    return replace(batch, identifier=identifier, occurrences=batch.occurrences[kept])


class _Store:
    """Tensors of each batch, in memory or one file each, or nowhere."""

    def __init__(self, folder: Path, place: str) -> None:
        self.place = place
        self._folder = folder
        self._memory: list[dict[str, Tensor]] = []
        shutil.rmtree(folder, ignore_errors=True)
        if place == "disk":
            folder.mkdir(mode=0o700)

    def save(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors of the next batch."""
        if self.place == "memory":
            self._memory.append(tensors)
        else:
            save_file(tensors, self._file(number))

    def load(self, number: int) -> dict[str, Tensor]:
        """What was kept of a batch; nothing if nothing is."""
        if self.place == "memory":
            return self._memory[number]
        return load_file(self._file(number)) if self.place == "disk" else {}

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"
