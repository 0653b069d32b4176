"""Fit a base to the checkpoint that was fine-tuned from it: the rows of its vocabulary.

Fine-tuning adds tokens, or pads the embedding to a round number, so the public base has other rows.
"""

from __future__ import annotations

from pathlib import Path

from sani.errors import CheckpointError
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.merging import resize_rows
from sani.models.streaming import stream_of


def fit_base(base: Checkpoint, checkpoint: Checkpoint) -> None:
    """In place: give a base the rows of a checkpoint, and its tokenizer if that has more tokens.

    Nothing is changed where the base's tokens are not all among the checkpoint's, by the same
    numbers: then it is another model's base, which `architecture_difference` says.
    """
    words, others = checkpoint.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if not others.items() <= words.items():
        return
    if len(others) < len(words):
        base.tokenizer = checkpoint.tokenizer
    rows = checkpoint.model.get_input_embeddings().weight.shape[0]
    others = base.model.get_input_embeddings().weight.shape[0]
    if rows != others and stream_of(base.model) is not None:
        raise CheckpointError(
            f"base {base.path} has {others} rows of tokens and the checkpoint {rows}: a streamed "
            "base cannot get more; add them where it is (resize_token_embeddings), or give "
            "placement: memory"
        )
    resize_rows(base.model, rows)


def load_base(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Load the base of a checkpoint, to the same device, and fit it; errors as of loading."""
    base = load_checkpoint(path, device=checkpoint.model.device, more_weights=True)
    fit_base(base, checkpoint)
    return base


def architecture_difference(one: Checkpoint, other: Checkpoint) -> str | None:
    """Return how two checkpoints differ in tensors, shapes, heads or vocabulary, or None.

    A head that only one of them ties to its embedding is no difference: it has the same shape.
    """
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in side.model.state_dict().items()}
        for side in (one, other)
    ]
    differing = [name for name in shapes[0] if shapes[0][name] != shapes[1].get(name)]
    if differing or len(shapes[0]) != len(shapes[1]):
        name = differing[0] if differing else "the number of tensors"
        return f"they differ in {name}"
    heads = [getattr(side.text_config, "num_attention_heads", None) for side in (one, other)]
    if heads[0] != heads[1]:  # the same shapes cut otherwise: no head means the same in both
        return "they differ in num_attention_heads"
    if one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        return "their tokenizers have different vocabularies"
    return None
