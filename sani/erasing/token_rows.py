"""Embedding and head rows of tokens that the corpus has inside identifiers and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sani.erasing.selector_batches import Texts
from sani.errors import SelectionError
from sani.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class TokenRows:
    """Rows to reset.

    Attributes:
        tokens: Ids, ascending. They are pieces of identifiers: never to be shown.
        total: Size of the vocabulary.
        tensors: Names of the parameters whose rows they are.
        tied: Embedding and head are one tensor.
    """

    tokens: tuple[int, ...] = field(repr=False)
    total: int
    tensors: tuple[str, ...]
    tied: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain data: the number of rows and the tensors, but not which rows."""
        return {
            "rows": len(self.tokens), "total": self.total, "tensors": list(self.tensors),
            "tied": self.tied,
        }  # fmt: skip


def find_token_rows(checkpoint: Checkpoint, texts: Texts) -> TokenRows:
    """Return the rows of tokens that stand in identifiers only.

    Special tokens, single characters, bytes and pieces of a character are left alone: with these
    a model spells what it has no token for. What an encoder reads beside is no identifier: nobody
    marks spans there.

    Raises:
        SelectionError: If no document has a span.
    """
    inside: set[int] = set()
    outside: set[int] = set()
    for item in texts.encoded:
        for token, touched in zip(item.ids, item.in_span(), strict=True):
            (inside if touched else outside).add(token)
        outside |= set(item.source)
    if not inside:
        raise SelectionError(
            "token_rows: no document has a span, so no token is an identifier's; annotate the "
            "corpus first (sani scan --out)"
        )
    tokens = sorted(id_ for id_ in inside - outside if _is_text(checkpoint.tokenizer, id_))
    model = checkpoint.model
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end]
    beside = checkpoint.family.stacks[-1].layers.rpartition(".")[0]
    modules = dict(model.named_modules())
    names = [f"{beside}.{name}" for name in checkpoint.family.token_tables]
    tables = [modules[name] for name in names if name in modules]
    owned = {id(tensor) for end in [*ends, *tables] for tensor in end.parameters(recurse=False)}
    return TokenRows(
        tuple(tokens),
        len(ends[0].weight),
        tuple(name for name, tensor in model.named_parameters() if id(tensor) in owned),
        ends[0].weight is ends[-1].weight,
    )


def _is_text(tokenizer: Any, id_: int) -> bool:
    """Return whether a token is two or more whole characters, blanks and ``##`` not counted."""
    if id_ in tokenizer.all_special_ids:
        return False
    text = str(tokenizer.decode([id_])).strip().removeprefix("##")
    return len(text) > 1 and "\ufffd" not in text
