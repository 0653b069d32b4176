"""Load, save and compare checkpoints; `sani.models.folder` says what a model folder is.

A folder gets the weights as safetensors and an allow-list of tokenizer and configuration files;
nothing else of the source folder goes in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from sani.atomic import check_no_input, new_folder, write_error
from sani.errors import CheckpointError
from sani.machine import distributed
from sani.models.adapters import Lora, merge, read_lora
from sani.models.building import build_options
from sani.models.families import check_reads, decoder_start, family_of, text_config
from sani.models.family import Family
from sani.models.folder import ModelFolder, check_written, open_folder
from sani.models.folder_files import copy_files, files_beside
from sani.models.safetensors_files import named_tensors
from sani.models.stored_tensors import refuse_infinite
from sani.models.streaming import WeightStream, stream_of, tensors_of
from sani.models.tokenizers import check_fits

# Where positions have no end (ALiBi, relative ones): what such models were trained with.
ENDLESS_POSITIONS = 2048
PIECE = 2**24  # numbers of a tensor that are copied at a time
HALF = (torch.float16, torch.bfloat16)
Placement = Literal["memory", "stream"]  # of the weights


@dataclass
class Checkpoint:
    """A model in evaluation mode, its tokenizer, and the folder they came from.

    Attributes:
        model: In float32, whatever its files hold.
        tokenizer: A fast one.
        path: The folder that the tokenizer was read from.
        types: Of the parameters and buffers that its files hold in less than float32, by name.
        sources: Every folder that was read, an adapter's and its base's; none is overwritten.
        begin_tokens: Begin tokens that its configurations name.
        random_steps: Random steps of the tokenizer that were switched off, in words.
        lora: The adapter that the model is merged from, if it is written as one; then no weight of
            the model is changed but by
            `sani.models.adapter_change`.
    """

    model: Any
    tokenizer: Any
    path: Path
    types: Mapping[str, torch.dtype] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    begin_tokens: tuple[int, ...] = ()
    random_steps: tuple[str, ...] = ()
    lora: Lora | None = None

    def rounded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor rounded to the type it has in the files, and in its own type again."""
        return tensor.to(self.types[name]).to(tensor) if name in self.types else tensor

    def rounding_of_both(self, other: Checkpoint) -> Callable[[str, torch.Tensor], torch.Tensor]:
        """Return a function that rounds a tensor, by name, to its types in the files of both."""
        return lambda name, tensor: self.rounded(name, other.rounded(name, tensor))

    def round_weights(self) -> None:
        """In place: give every weight in memory a value that its type in the files can hold.

        Raises:
            CheckpointError: If one is too large for it.
        """
        with torch.no_grad():
            for name, tensor in named_tensors(self.model):
                if name not in self.types or tensor.is_meta:
                    continue
                for piece in pieces(tensor):
                    piece.copy_(self.rounded(name, piece))
                    if not torch.isfinite(piece).all():
                        raise CheckpointError(
                            f"tensor '{name}' holds numbers that are too large for its type, "
                            f"{self.types[name]}; give the checkpoint in float32"
                        )

    def has_weights_of(self, other: Checkpoint) -> bool:
        """Return whether both have the same weights, rounded to the types in the files of both.

        The public model in float32 and a copy of it saved in bfloat16 are the same weights.
        """
        rounded = self.rounding_of_both(other)
        # Tied tensors by each of their names: one folder may tie what the other holds twice.
        if {n: t.shape for n, t in self._state().items()} != {
            n: t.shape for n, t in other._state().items()
        }:
            return False
        streams = stream_of(self.model), stream_of(other.model)
        if streams[0] and streams[1]:
            same_files = streams[0].has_files_of(streams[1])
            if same_files is not None:
                return same_files
        pairs = zip(tensors_of(self.model), tensors_of(other.model), strict=True)
        return all(
            name == same
            and all(
                torch.equal(rounded(name, one), rounded(name, two.to(one)))
                for one, two in zip(pieces(tensor), pieces(weight), strict=True)
            )
            for (name, tensor), (same, weight) in pairs
        )

    def weights_digest(self) -> str:
        """Return the SHA-256 over every tensor's name, type, shape and bytes."""
        digests = {}
        for name, tensor in tensors_of(self.model):
            tensor = tensor.detach().cpu().contiguous()
            # A tensor without dimensions cannot be viewed as bytes.
            content: Any = (
                tensor.view(torch.uint8).numpy() if tensor.ndim else repr(tensor).encode()
            )
            digest = hashlib.sha256(content).hexdigest()
            digests[name] = f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}"
        lines = "\n".join(digests[name] for name in sorted(digests))
        return hashlib.sha256(lines.encode()).hexdigest()

    def _state(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.model.state_dict()
        return state

    def check_tokenizer(self) -> None:
        """Refuse a tokenizer that documents cannot be read with.

        Raises:
            CheckpointError: If it is not a fast one, has more tokens than the model, or the model
                predicts masked tokens and it has none to mask with.
        """
        check_fits(self.tokenizer, self.model.get_input_embeddings().weight.shape[0], self.path)
        if self.family.objective == "masked" and self.tokenizer.mask_token_id is None:
            raise CheckpointError(
                f"model folder {self.path}: the model predicts masked tokens and the tokenizer has "
                "no mask token; give the tokenizer that it was trained with"
            )

    @cached_property
    def family(self) -> Family:
        """The row of `sani.models.families` that the model is of.

        Raises:
            UnsupportedModelError: If there is none.
        """
        return family_of(self.model.config)

    @property
    def text_config(self) -> Any:
        """Configuration of what reads text: all of the model, or a tower of it."""
        return text_config(self.model.config)

    @property
    def decoder_start(self) -> int | None:
        """First token of the decoder that writes a second text; None for other models."""
        return decoder_start(self.model.config)

    @property
    def learns_positions(self) -> bool:
        """True if each place of the input has a vector of its own, as in GPT-2."""
        vocabulary = self.model.get_input_embeddings()
        return any(
            isinstance(module, torch.nn.Embedding)
            and module is not vocabulary
            and module.num_embeddings >= self.context_tokens
            for module in self.model.modules()
        )

    @property
    def context_tokens(self) -> int:
        """Return the longest input of the model.

        A sliding attention window does not shorten it: layers that attend to everything, or windows
        of several layers together, reach further back.
        """
        config = self.text_config
        positions = int(getattr(config, "max_position_embeddings", ENDLESS_POSITIONS))
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":  # what stands further on changes what stands before
            positions = min(positions, int(rope["original_max_position_embeddings"]))
        if getattr(config, "attention_type", "") == "block_sparse":  # what BigBird reads in full:
            blocks = 5 + 2 * config.num_random_blocks  # behind it, it draws what it looks at
            positions = min(positions, blocks * config.block_size)
        if self.family.positions_behind_padding:
            positions -= (config.pad_token_id or 0) + 1
        return positions


def pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return views of a tensor, of at most `PIECE` numbers each, so that work on one copies little.

    A tensor that is not contiguous is one piece.
    """
    whole = tensor.detach()
    return whole.view(-1).split(PIECE) if whole.is_contiguous() else (whole,)


def load_checkpoint(
    path: Path | str | ModelFolder,
    *,
    base: Path | str | None = None,
    device: torch.device | None = None,
    more_weights: bool = False,
    placement: Placement = "memory",
    keep_adapter: bool = False,
) -> Checkpoint:
    """Load a language model and its fast tokenizer, in float32, as its family's objective asks.

    An adapter is merged into its base; its own tokenizer goes before the base's.

    Args:
        path: The folder; as a `ModelFolder` it is not checked again.
        base: Of the model that it is an adapter on; without meaning if it is none.
        device: Where to put it; the CPU if absent.
        more_weights: As for `open_folder`.
        placement: ``memory``, or ``stream``: the weights stay in the files of the folder and are
            read layer by layer (see `sani.models.streaming`).
        keep_adapter: It is an adapter and is to be written as one; the merged weights are then not
            rounded to the types of the base's.

    Raises:
        UnsupportedModelError: If the family is not one of `sani.models.families`.
        CheckpointError: If the folder is not a checkpoint that sani reads, the weights hold NaN or
            infinities, an adapter is to be streamed, or one is to be kept and is not plain LoRA.
    """
    folder = (
        path
        if isinstance(path, ModelFolder)
        else open_folder(path, base=base, more_weights=more_weights)
    )
    device = device or torch.device("cpu")
    lora = read_lora(folder) if keep_adapter else None
    if folder.base is not None:
        if placement == "stream":
            raise CheckpointError(
                f"model folder {folder.path}: an adapter cannot be streamed; merge it first (peft: "
                "merge_and_unload) and give the merged folder, or give placement: memory"
            )
        merged = merge(folder, load_checkpoint(folder.base), device)
        return merged if lora is None else replace(merged, types={}, lora=lora)
    path = folder.path
    tokenizer, random_steps = folder.load_tokenizer_and_steps()
    if placement == "stream":
        folder.check_finite()
        model = WeightStream(folder, device=device).model
    else:
        model = _load_model(folder)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                refuse_infinite(path, name, tensor)
        model = model.to(device)
    check_reads(model.eval())
    stored = folder.stored.types(folder.skeleton)
    types = {name: type_ for name, type_ in stored.items() if type_ in HALF}
    rows = model.get_input_embeddings().weight.shape[0]
    begin_tokens = tuple(token for token in folder.begin_tokens if token < rows)
    return Checkpoint(model, tokenizer, path, types, (path,), begin_tokens, random_steps)


def _load_model(folder: ModelFolder) -> Any:
    """Load the weights of a whole model in float32."""
    from transformers import GenerationConfig

    path = folder.path
    source: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if folder.stored.wrapped:  # transformers would know none of their names
        source = {"pretrained_model_name_or_path": None, "state_dict": dict(folder.stored)}
    try:
        model, info = type(folder.skeleton).from_pretrained(
            **source,
            config=folder.config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **build_options(folder.config),
        )
        if folder.stored.wrapped and (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"model folder {path} cannot be loaded ({type(error).__name__}); are config.json, the "
            "weights and the tokenizer of one model, and whole?"
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise CheckpointError(
            f"model folder {path} cannot be loaded whole: {len(info['missing_keys'])} tensors are "
            f"missing and {len(info['mismatched_keys'])} have another shape than config.json says"
        )
    return model


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path | str, *, finish: Callable[[Path], None] | None = None
) -> None:
    """Write weights, configuration and tokenizer to ``folder``, whole or not at all.

    Of a checkpoint with an adapter of its own only that is written, and merged once more, to see
    that the model is its base and what was written, and nothing else. Weights get the types that
    they had in their files. Of several processes, each of which holds the checkpoint, the main one
    writes.

    Args:
        checkpoint: What to write; its tokenizer files are copied from ``checkpoint.path``.
        folder: Must not exist yet, or be one that this function may replace.
        finish: Adds files; called with the staging folder just before it is renamed.

    Raises:
        CheckpointError: If the model is not what its base and its adapter give.
        WriteError: If the checkpoint was read from there, or the folder cannot be written.
    """
    folder = Path(folder)
    check_no_input(folder, [checkpoint.path, *checkpoint.sources])
    distributed.on_main(partial(_save, checkpoint, folder, finish))


def _save(checkpoint: Checkpoint, folder: Path, finish: Callable[[Path], None] | None) -> None:
    stream = stream_of(checkpoint.model)
    with new_folder(folder) as staging:
        if checkpoint.lora is not None:
            _save_adapter(checkpoint, checkpoint.lora, staging, folder)
        elif stream is not None:
            stream.write(staging)
        else:
            with _in_file_types(checkpoint):
                try:
                    checkpoint.model.save_pretrained(staging, safe_serialization=True)
                except SafetensorError as error:  # how safetensors puts a full disk
                    raise write_error(folder, error, whole=True) from None
        if checkpoint.lora is None:
            copy_files(checkpoint.path, staging, files_beside(checkpoint.path, checkpoint.family))
            check_written(staging, folder)
        if finish is not None:
            finish(staging)


def _save_adapter(checkpoint: Checkpoint, lora: Lora, staging: Path, folder: Path) -> None:
    """Write an adapter, and refuse to if it does not give the checkpoint's model on its base."""
    try:
        lora.write(staging)
    except SafetensorError as error:
        raise write_error(folder, error, whole=True) from None
    check_written(staging, folder, base=lora.base)
    written = load_checkpoint(staging, base=lora.base)
    if written.weights_digest() != checkpoint.weights_digest():
        raise CheckpointError(
            f"cannot write {folder}: the adapter on its base {lora.base} is another model than the "
            "one in memory, so figures of that one would not be of what is written; are the base's "
            "files those that were read? Start again with the same base"
        )


@contextmanager
def _in_file_types(checkpoint: Checkpoint) -> Iterator[None]:
    """Within, the model's tensors and its configuration have the types that they get in files."""
    config = checkpoint.model.config
    nested = (getattr(config, name, None) for name in config.sub_configs)
    configs = [config, *(part for part in nested if part is not None)]
    config_types = [part.dtype for part in configs]
    originals: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for name, tensor in named_tensors(checkpoint.model):
            if name in checkpoint.types:
                # The data is exchanged, not the tensor: tied tensors stay tied, and the float32
                # numbers come back bit for bit.
                originals.append((tensor, tensor.data))
                tensor.data = tensor.data.to(checkpoint.types[name])
        for part in configs:
            part.dtype = checkpoint.model.dtype
        yield
    finally:
        for part, type_ in zip(configs, config_types, strict=True):
            part.dtype = type_
        for tensor, data in originals:
            tensor.data = data
