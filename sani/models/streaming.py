"""A model whose weights stay in their files: each layer is read when it is called, then dropped.

The model is built without memory for its weights. A hook on each layer, and on each module before,
between and behind the layers, reads the weights of that part, as transformers would load them.
Code that runs many batches hands its passes to `run_passes`, which reads a layer once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sani.errors import UnsupportedModelError
from sani.models.building import streamed_skeleton
from sani.models.families import base_of, text_config
from sani.models.folder import ModelFolder
from sani.models.parts import Part, parts_of
from sani.models.passes import PassGroup, PausingPasses, run_one_by_one, sweeps
from sani.models.stored_copies import copy_other_files, copy_patched

SWEEP_BYTES = 2**30  # of hidden states that are held while a layer runs for all batches
STATES_HELD = 3  # of a token: input and output of a layer, and what goes by it (masks, angles)
_STREAM = "weight_stream"  # attribute of a model that has one


def run_passes(
    model: Any, groups: Iterable[PassGroup], on_group: Callable[[], None] = lambda: None
) -> None:
    """Run forward passes of a model, without gradients if its weights stay in their files.

    Args:
        model: In memory: passes run one by one. Streamed: each layer runs for many of them.
        groups: Made when they are needed, so that few inputs are held.
        on_group: Called once for each group that is done.
    """
    stream = stream_of(model)
    if stream is None:
        run_one_by_one(groups, on_group)
    else:
        stream.run(groups, on_group)


def stream_of(model: Any) -> WeightStream | None:
    """Return what reads a model's weights; None if they are in memory."""
    stream: WeightStream | None = getattr(model, _STREAM, None)
    return stream


def release(model: Any) -> None:
    """Drop what a streamed model has read and does not keep; nothing happens to another one."""
    stream = stream_of(model)
    if stream is not None:
        stream.drop()


def check_in_memory(model: Any, work: str) -> None:
    """Refuse a streamed model for work that calls it many times or changes all of it.

    Args:
        model: The model.
        work: The work, as the subject of a sentence.

    Raises:
        UnsupportedModelError: If its weights stay in their files.
    """
    if stream_of(model) is not None:
        raise UnsupportedModelError(
            f"{work} needs the weights in memory, and this checkpoint is streamed from its files; "
            "load it with placement: memory"
        )


def tensors_of(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model's state, each name once; of a streamed one part by part."""
    stream = stream_of(model)
    yield from model.state_dict().items() if stream is None else stream.tensors()


class WeightStream:
    """The weights of one model, read from its files part by part.

    Attributes:
        model: The model in evaluation mode. It has a part's weights only while that part runs.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device) -> None:
        """Build the model and put hooks on its parts; of its tensors only buffers are read.

        Args:
            folder: A checked folder with a whole model.
            device: Of the computation.

        Raises:
            UnsupportedModelError: If the family is not in the table: nobody has compared what such
                a model gives with what it gives in memory.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping

        if not folder.family.listed:
            raise UnsupportedModelError(
                f"model_type '{folder.config.model_type}' is not in the table of families, so it "
                "is not streamed; give placement: memory"
            )
        self.model: Any = streamed_skeleton(folder.config, device)
        self._folder, self._stored, self._device = folder, folder.stored, device
        self._rules: list[Any] = list(get_model_conversion_mapping(folder.skeleton))
        self._absent = dict(self.model.named_parameters(remove_duplicate=False))
        self._names: dict[int, list[str]] = {}
        for name, tensor in self._absent.items():
            self._names.setdefault(id(tensor), []).append(name)
        self._sources = self._names_in_files(folder.skeleton)
        self._passes = PausingPasses()
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._loaded: list[Part] = []
        self._kept: set[str] = set()
        self._enter(self._read([name for name, _ in self.model.named_buffers()]))
        self._parts = list(parts_of(self.model, folder.family.read_from_outside))
        # A head is called behind the base, whose work its caller may have replaced meanwhile
        # (`families.logits`): no other pass may run before that caller ends.
        base = self.model if folder.family.objective == "seq2seq" else base_of(self.model)
        inner = set(base.modules())
        for number, part in enumerate(self._parts):
            module = self.model.get_submodule(part.name)
            hook = self._before(number, pauses=module in inner)
            module.register_forward_pre_hook(hook)
        setattr(self.model, _STREAM, self)

    def run(self, groups: Iterable[PassGroup], on_group: Callable[[], None]) -> None:
        """Run passes side by side, those of as many groups as `SWEEP_BYTES` allow."""
        held = STATES_HELD * 4 * int(text_config(self.model.config).hidden_size)  # bytes a token
        for sweep in sweeps(groups, max(1, SWEEP_BYTES // held)):
            passes = [run for group in sweep for run in group.passes]
            try:
                self._passes.run(passes, prepare=self._begin)
            finally:
                self.drop()
            for _ in sweep:
                on_group()

    def keep(self, names: Iterable[str]) -> None:
        """Read some parameters and keep them in memory, to be changed there.

        Tied parameters are one in memory, too.
        """
        left = dict.fromkeys(names)
        for part in self._parts:
            mine = [name for name in part.tensors if name in left and name not in self._kept]
            if mine:
                self._enter(self._read(mine))
                for name in mine:
                    names = self._tied(name)
                    tensor = next(t for t in map(self._place, names) if not t.is_meta)
                    for tied in names:
                        self._put(tied, tensor)
                    self._kept.update(names)

    def kept(self) -> dict[str, Tensor]:
        """Return the parameters that are kept in memory, by each of their names."""
        return {name: self._place(name) for name in sorted(self._kept)}

    def has_files_of(self, other: WeightStream) -> bool | None:
        """Return whether the files of both hold the same numbers, in the coarser of their types.

        They are compared as they are stored, which takes half the memory. None if the files have
        other names, or a weight is kept and may have changed.
        """
        if self._kept or other._kept or self._stored.keys() != other._stored.keys():
            return None
        for name in self._stored:
            one, two = self._stored[name], other._stored[name]
            if one.shape != two.shape or not torch.equal(
                one.to(two.dtype).to(one.dtype), two.to(one.dtype)
            ):
                return False
        return True

    def write(self, folder: Path) -> None:
        """Write the model as a copy of its folder, with the kept parameters as they are now.

        Raises:
            UnsupportedModelError: If transformers makes a kept parameter from tensors of the files
                by more than a new name or a stack of experts.
        """
        skeleton = self._folder.skeleton
        stored, experts = self._stored.named_as_in(skeleton), self._stored.experts(skeleton)
        tensors = {name: e.tensor for name, e in experts.items()} | {
            name: name for name in stored if name not in experts
        }
        changed = [name for name, tensor in tensors.items() if tensor in self._kept]
        written = {tied for name in changed for tied in self._tied(tensors[name])}
        if self._kept - written:
            raise UnsupportedModelError(
                f"tensor '{min(self._kept - written)}' is stored in another form than the model "
                "has it, so a streamed model cannot be written; give placement: memory"
            )

        def patch(name: str, tensor: Tensor) -> None:
            value = self._place(tensors[name])
            if name in experts:
                expert = experts[name]
                value = value[expert.number, expert.row : expert.row + len(tensor)]
            tensor.copy_(value)

        with torch.no_grad():
            copy_patched(stored, folder, changed, patch)
        copy_other_files(self._folder, folder)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor of the model's state, in float32, a tied one by each of its names.

        They come part by part. A part is dropped when the next one is asked for.
        """
        left = dict.fromkeys(self.model.state_dict())
        try:
            for part in self._parts:
                self.drop()
                self._load(part)
                for name in part.tensors:
                    if name in left:  # read by two parts, if one reads it from outside
                        del left[name]
                        yield name, self._place(name)
        finally:
            self.drop()
        for name in left:  # buffers
            yield name, self._place(name)

    # ---- parts -------------------------------------------------------------------------------

    def _before(self, number: int, *, pauses: bool) -> Callable[[nn.Module, Any], None]:
        part = self._parts[number]

        def read(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if "forward" in vars(module):  # replaced by code that computes nothing
                return
            if part not in self._loaded and self._absent_of(part):
                if not pauses:
                    self._load(part)
                elif self._passes.active:
                    self._passes.pause(number)
                else:
                    self._begin(number)
            _check_inputs(part, inputs)

        return read

    def _begin(self, number: int) -> None:
        """Drop what is in memory and read a part, then begin to read the bytes of the next one."""
        part = self._parts[number]
        if part in self._loaded:
            return
        self.drop()
        ahead, self._ahead = self._ahead, None
        self._load(part, ahead[1].result() if ahead is not None and ahead[0] == number else None)
        following = number + 1
        if part.is_layer and following < len(self._parts):
            names = self._absent_of(self._parts[following])
            if names:
                self._ahead = following, self._reader.submit(self._read, names)

    def _load(self, part: Part, tensors: dict[str, Tensor] | None = None) -> None:
        """Give the model the weights of a part; nothing happens if it has them."""
        names = self._absent_of(part)
        if part in self._loaded or not names:
            return
        self._loaded.append(part)
        self._enter(self._read(names) if tensors is None else tensors)
        for name in names:
            if self._place(name).is_meta:  # the files have it by another of its names
                there = [n for n in self._tied(name) if not self._place(n).is_meta]
                if not there:
                    raise UnsupportedModelError(
                        f"the files hold no tensor for '{name}', so this model cannot be streamed; "
                        "give placement: memory"
                    )
                self._put(name, self._place(there[0]))
            self._place(name).requires_grad_(False)  # or a graph would hold what is dropped

    def drop(self) -> None:
        """Take the weights of all parts from the model, but those that are kept."""
        for part in self._loaded:
            for name in self._absent_of(part):
                for tied in self._tied(name):
                    self._put(tied, self._absent[tied])
        self._loaded = []

    def _absent_of(self, part: Part) -> list[str]:
        return [name for name in part.tensors if name not in self._kept]

    # ---- tensors -----------------------------------------------------------------------------

    def _read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read what the files have of some tensors, by the names and in the types there."""
        stored = dict.fromkeys(source for name in names for source in self._sources.get(name, ()))
        return {name: self._stored[name] for name in stored}

    def _enter(self, stored: dict[str, Tensor]) -> None:
        """Give the model tensors of the files, converted by transformers and in float32."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        config = LoadStateDictConfig(
            dtype=torch.float32, weight_mapping=self._rules, device_map={"": self._device}
        )
        convert_and_load_state_dict_in_model(self.model, stored, config)

    def _names_in_files(self, skeleton: Any) -> dict[str, list[str]]:
        """Return the names in the files of what each tensor of the model is made from."""
        sources: dict[str, list[str]] = {}
        for stored, name in self._stored.targets(skeleton).items():
            sources.setdefault(name, []).append(stored)
        for name in self._absent:
            tied = [other for other in self._tied(name) if other in sources]
            if name not in sources and tied:
                sources[name] = sources[tied[0]]
        return sources

    def _tied(self, name: str) -> list[str]:
        """Return all names of a parameter."""
        return self._names[id(self._absent[name])]

    def _place(self, name: str) -> Tensor:
        owner, _, attribute = name.rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), attribute)
        return tensor

    def _put(self, name: str, tensor: Tensor) -> None:
        owner, _, attribute = name.rpartition(".")
        setattr(self.model.get_submodule(owner), attribute, tensor)


def _check_inputs(part: Part, inputs: tuple[Any, ...]) -> None:
    """Refuse inputs that were moved to where absent weights are: their numbers are lost there.

    Raises:
        UnsupportedModelError: If there is one.
    """
    if any(isinstance(value, Tensor) and value.is_meta for value in inputs):
        raise UnsupportedModelError(
            f"this family reads weights outside the modules that hold them (before {part.name}), "
            "so it cannot be streamed from its files; give placement: memory"
        )
