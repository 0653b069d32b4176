"""The models of a run: the base, the unsanitized checkpoint and the latest one.

Each folder is loaded once, when a stage first needs it. A model that several stages need stays in
memory; one that is to be changed is a copy, or the loaded model itself if no later stage needs it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sani.corpus.documents import Corpus
from sani.erasing.erase import EraseResult
from sani.erasing.folder import apply_folder, plan_folder
from sani.errors import RecipeError, RunError
from sani.machine.device import default_device
from sani.models.bases import architecture_difference, fit_base
from sani.models.checkpoint import Checkpoint, Placement, load_checkpoint, save_checkpoint
from sani.models.folder import ModelFolder
from sani.pipeline.candidates import check_loaded_candidate
from sani.pipeline.inputs import ModelFolders, check_control
from sani.recipe import EraseSettings, Recipe
from sani.releasing.identifiers_in_files import check_other_texts, check_texts
from sani.reporting.card import read_source_card
from sani.runfolder import RunFolder
from sani.text.chat import lend_template


def needs_unsanitized_again(recipe: Recipe) -> bool:
    """Return whether a stage needs the unsanitized checkpoint after the erase changed it."""
    return (
        recipe.attack is not None
        or recipe.audit.unlearning_depth
        or recipe.gate.judges_attacks
        or recipe.strategy == "escalate"  # each rung begins with it
        or (recipe.repair is not None and recipe.repair.needs_unsanitized)
    )


class GivenModels:
    """The models that a recipe names, on the device of this process."""

    def __init__(
        self, recipe: Recipe, given: ModelFolders, corpus: Corpus, placement: Placement
    ) -> None:
        """Take what says where the models are; nothing is loaded yet.

        Args:
            recipe: It says which models a run needs, and how often.
            given: The folders of its ``model`` section.
            corpus: Its identifiers must not stand in the text files of the given checkpoint.
            placement: Of all weights: ``memory`` or ``stream``.
        """
        self._placement = placement
        self._recipe = recipe
        self._given = given
        self._corpus = corpus
        self._unsanitized: Checkpoint | None = None

    def load(self) -> None:
        """Load what every run needs, so that what is wrong with it is told before hours of work."""
        _ = self.unsanitized
        if self._given.base is not None:
            _ = self.base

    @property
    def unsanitized(self) -> Checkpoint:
        """The checkpoint as it came; of one that is only checked, the one it was made from.

        Do not change it: see `unsanitized_to_change`.
        """
        if self._unsanitized is None:
            if self._given.unsanitized is None:
                self._unsanitized = self._load_given()
            else:
                self._unsanitized = self._load(self._given.unsanitized)
        return self._unsanitized

    def unsanitized_to_change(self) -> Checkpoint:
        """Return the unsanitized checkpoint for a stage that changes it in place.

        It is a copy if a later stage needs the unsanitized one again.
        """
        if self.is_streamed or needs_unsanitized_again(self._recipe):
            return self.copy_of_unsanitized()
        checkpoint, self._unsanitized = self.unsanitized, None
        return checkpoint

    def copy_of_unsanitized(self) -> Checkpoint:
        """Return the unsanitized checkpoint, to be changed; a streamed one is opened anew."""
        if self.is_streamed:
            return self._load(self._given.path)
        return replace(self.unsanitized, model=copy.deepcopy(self.unsanitized.model))

    @cached_property
    def base(self) -> Checkpoint:
        """The model that the checkpoint was fine-tuned from: control and anchor.

        Raises:
            RecipeError: If it is no control: another architecture, or the checkpoint's own weights.
        """
        if self._given.base is None:
            raise RecipeError("model.base: missing")
        base = self._load(self._given.base)
        unsanitized = self._given.unsanitized or self._given.path
        fit_base(base, self.unsanitized)
        base.tokenizer = lend_template(base.tokenizer, unsanitized.load_tokenizer())
        if self._base_is_new:
            name = "model.unsanitized" if self._recipe.only_checks else "model.path"
            difference = architecture_difference(self.unsanitized, base)
            if difference:
                raise RecipeError(
                    f"model.base: it does not fit {name}, so it is no control: {difference}"
                )
            check_control(self.unsanitized, base, name=name, option="model.base")
        return base

    @property
    def _base_is_new(self) -> bool:
        """True if nobody has compared the base with the checkpoint yet."""
        return True

    def load_candidate(self) -> Checkpoint:
        """Load the checkpoint that is only checked.

        It is audited with the tokenizer of the unsanitized checkpoint. One that cuts otherwise is
        refused: it may hide what the weights know, or show what that tokenizer hides.

        Raises:
            RecipeError: If it does not fit the unsanitized checkpoint, or has the weights of that
                one or of the base.
        """
        checked, before = self._load_given(), self.unsanitized
        difference = architecture_difference(checked, before)
        if difference:
            raise RecipeError(
                "model.unsanitized: it does not fit model.path, so it is no positive control: "
                f"{difference}"
            )
        check_loaded_candidate(checked, before)
        if self._given.base is not None:
            check_control(checked, self.base, name="model.path", option="model.base")
        return replace(
            checked,
            tokenizer=before.tokenizer,
            begin_tokens=before.begin_tokens,
            random_steps=before.random_steps,
        )

    @property
    def is_streamed(self) -> bool:
        """True if weights stay in their files."""
        return self._placement == "stream"

    def _load(self, folder: ModelFolder | Path, *, to_change: bool = False) -> Checkpoint:
        """Load a folder; what is ``to_change`` stays an adapter if one is to be written."""
        return load_checkpoint(
            folder,
            base=self._recipe.model.base,
            device=default_device(),
            placement=self._placement,
            keep_adapter=to_change and self._recipe.output == "adapter",
        )

    def _load_given(self) -> Checkpoint:
        """Load the checkpoint of ``model.path``, if its text files hold no identifier."""
        checkpoint = self._load(self._given.path, to_change=True)
        base = self._recipe.model.base
        # The tokenizer of an adapter may lie in another folder than the adapter.
        for folder in dict.fromkeys([checkpoint.path, self._given.path.path]):
            check_texts(folder, self._corpus, base=base)
        if self._recipe.only_checks:
            self._given.path.check_unchanged()  # since its digest was taken
            check_other_texts(self._given.path.path, self._corpus)
        # Its card goes into the report: what must not stand there is told before hours of work.
        read_source_card(self._recipe.model.path, base, self._corpus)
        return checkpoint


class ModelsOfRun(GivenModels):
    """The models of one run; those that a stage changed are kept in the run folder."""

    def __init__(
        self,
        recipe: Recipe,
        given: ModelFolders,
        folder: RunFolder,
        corpus: Corpus,
        placement: Placement,
    ) -> None:
        """Take what says where the models are; nothing is loaded yet.

        Args:
            recipe: As for `GivenModels`.
            given: As for `GivenModels`.
            folder: The run folder, in whose private part changed models are kept.
            corpus: As for `GivenModels`.
            placement: As for `GivenModels`.
        """
        super().__init__(recipe, given, corpus, placement)
        self._folder = folder
        self._latest: Checkpoint | None = None

    def use_given(self) -> None:
        """Make the given checkpoint the latest one, for a run that only checks it."""
        self.set_latest(self.load_candidate())

    @property
    def _base_is_new(self) -> bool:
        # Once it is audited, an earlier process has checked it, and its digest is still the same.
        return not self._folder.finished("audit-base")

    @property
    def latest(self) -> Checkpoint:
        """The checkpoint as the last finished stage left it; that stage may be of another process.

        Raises:
            RunError: If the weights in the run folder are not those that the stage left there.
        """
        if self._latest is None:
            stages = [stage for stage in ("repair", "erase") if self._folder.finished(stage)]
            self._latest = self.load_kept(stages[0]) if stages else self.unsanitized_to_change()
        return self._latest

    def keep(self, stage: str, checkpoint: Checkpoint, result: Mapping[str, Any]) -> None:
        """Keep a stage's weights in the private part, then its result, which finishes the stage.

        The checkpoint is the latest one from then on; one that is streamed is read from there.
        """
        path = self._folder.private / stage
        save_checkpoint(checkpoint, path)
        self._folder.save(stage, {**result, "weights_digest": checkpoint.weights_digest()})
        if self.is_streamed:
            # The trained layers go before those of the kept model come: a Trainer that is done
            # holds on to them in a circle.
            del checkpoint
            self._latest = None
            gc.collect()
            checkpoint = self.load_kept(stage)
        self.set_latest(checkpoint)

    def erase_in_files(
        self, settings: EraseSettings, *, seed: int, record: Callable[[EraseResult], dict[str, Any]]
    ) -> None:
        """Erase a streamed checkpoint in its files, and keep it and the result as `keep` does.

        Args:
            settings: Which neurons, and what they are reset to.
            seed: Seed of random choices and fresh weights.
            record: Returns the result as it stands in its file.
        """
        given, base = self._given.path.path, self._recipe.model.base
        path = self._folder.private / "erase"
        plan = plan_folder(given, settings, base=base, seed=seed)
        result = apply_folder(given, path, plan, base=base)
        digest = self._load(path).weights_digest()
        self._folder.save("erase", {**record(result), "weights_digest": digest})
        self.set_latest(self.load_kept("erase"))

    def set_latest(self, checkpoint: Checkpoint) -> None:
        """Let a checkpoint, whose weights stand in the run folder too, be the latest one."""
        self._latest = checkpoint

    def load_kept(self, name: str) -> Checkpoint:
        """Load the weights that a stage or a round left in the private part.

        Raises:
            RunError: If they are not those that it left there.
        """
        path = self._folder.private / name
        checkpoint = self._load(path, to_change=True)
        if checkpoint.weights_digest() != self._folder.load(name)["weights_digest"]:
            stage = "the round" if name.startswith("round-") else name
            raise RunError(
                f"{path}: the weights are not those that {stage} left there; start again in "
                "another --out"
            )
        # Tokenizer files, and an adapter's settings, are copied from the given folder when it is
        # saved: that folder outlives a round's.
        lora = checkpoint.lora and replace(checkpoint.lora, folder=self._given.path)
        return replace(checkpoint, path=self._given.path.tokenizer_path, lora=lora)
