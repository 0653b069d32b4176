"""Framing: the tokens that stand around every document, as training may have put them there.

An audit with another framing than training's sees less leakage than there is, so it tries all that
are plausible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sani.errors import AuditError
from sani.text.templates import TemplateRefusedError, render_chat

if TYPE_CHECKING:
    from sani.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Framing:
    """The tokens around every document.

    Attributes:
        name: One of those that `framings` lists.
        prefix: Token ids before it.
        suffix: Token ids behind it, where the model sees them.
        block: Tokens of a block, where documents are packed: each stands behind the one before it
            in the corpus, and all of them are cut into blocks. 0 where each stands alone.
        offset: Tokens of the first block, where it is shorter than the others.
    """

    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    block: int = 0
    offset: int = 0

    def capacity(self, context_tokens: int) -> int:
        """Return the number of tokens of a document that fit a model's input beside the framing."""
        room = min(self.block, context_tokens) if self.block else context_tokens
        return room - len(self.prefix) - len(self.suffix)

    def shifted(self) -> list[Framing]:
        """Return the other framings of the same blocks, cut a quarter of a block later each."""
        quarters = (quarter * self.block // 4 for quarter in range(4))
        return [
            replace(self, name=f"{self.name.partition('+')[0]}{f'+{offset}' if offset else ''}",
                    offset=offset)
            for offset in quarters
            if offset != self.offset
        ]  # fmt: skip


# Stands for a packed document's predecessor: any text will do, what counts is that some is there.
_PREDECESSOR = "The patient was seen again and went home. There were no further complaints. " * 3
_MARK = "\u2603"
ROLES = ("user", "assistant")  # whose turns a chat template opens
# A begin token that the tokenizer does not call so; by its number any tokenizer has this framing.
_NUMBERED = re.compile(r"(?:eos-)?bos-(\d+)")
# Documents packed into blocks of so many tokens, by what stands between two of them.
_BLOCKS = re.compile(r"blocks-(\d+)(-bos|-none)?(?:\+(\d+))?")
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 8192  # usual lengths of blocks; a context may be longer


def framing_of(checkpoint: Checkpoint, name: str) -> Framing:
    """Return the framing of this name for a checkpoint's tokenizer and kind of model.

    Raises:
        AuditError: If the tokenizer lacks the token or the template it needs.
    """
    return framing_named(
        name,
        checkpoint.tokenizer,
        masked=checkpoint.family.objective == "masked",
        start=checkpoint.decoder_start,
    )


def framings_of(checkpoint: Checkpoint) -> list[Framing]:
    """Return every framing that the checkpoint's training may plausibly have used."""
    return framings(
        checkpoint.tokenizer,
        masked=checkpoint.family.objective == "masked",
        start=checkpoint.decoder_start,
        begin_tokens=checkpoint.begin_tokens,
    )


def framings(
    tokenizer: Any,
    *,
    masked: bool = False,
    start: int | None = None,
    begin_tokens: Sequence[int] = (),
) -> list[Framing]:
    """Return every framing that training may plausibly have used, each prefix once.

    ``bos`` the begin token, ``eos`` the end token of a document packed before, ``eos-bos`` both,
    ``packed`` a whole document and the end token, ``newline`` an empty line, ``chat-user`` and
    ``chat-assistant`` the chat template's opening of a turn, ``tokenizer`` whatever the tokenizer
    itself puts around it, ``none`` nothing; for a masked language model only the last two. With
    ``start``, what a decoder begins with, only ``tokenizer`` and ``start``, and no more than it.
    ``bos-5`` and ``eos-bos-5`` are those with token 5, one of ``begin_tokens``: what configurations
    name as begin token and the tokenizer does not.
    """
    by_prefix: dict[tuple[int, ...], Framing] = {}
    for name, framing in _framings(tokenizer, start, begin_tokens).items():
        if not masked or name in ("tokenizer", "none"):
            by_prefix.setdefault(framing.prefix, framing)
    return list(by_prefix.values())


def framing_named(
    name: str, tokenizer: Any, *, masked: bool = False, start: int | None = None
) -> Framing:
    """Return the framing of this name for this tokenizer.

    ``auto`` is the begin token where there is one, which training most often used, else, and for
    a masked or an encoder-decoder model, what the tokenizer itself does; an audit tries them all
    instead.

    Raises:
        AuditError: If the tokenizer lacks the token or the template it needs.
    """
    if blocks := _BLOCKS.fullmatch(name):
        return _blocks(tokenizer, int(blocks[1]), (blocks[2] or "-eos")[1:], int(blocks[3] or 0))
    numbered = _NUMBERED.fullmatch(name)
    known = _framings(tokenizer, start, [int(numbered[1])] if numbered else [])
    if name == "auto":
        name = "bos" if "bos" in known and not masked else "tokenizer"
    if name not in known:
        raise AuditError(
            f"framing '{name}': the tokenizer has no token or template for it; it has "
            f"{', '.join(known)}"
        )
    return known[name]


def _framings(tokenizer: Any, start: int | None, begin_tokens: Sequence[int]) -> dict[str, Framing]:
    """Return each framing that this tokenizer has the tokens for; two may be the same."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    # The special tokens that the tokenizer itself puts around an empty text.
    special = tokenizer("", add_special_tokens=True)["input_ids"]
    behind: list[int] = []
    if special and special[-1] in (eos, tokenizer.sep_token_id) and special[-1] != bos:
        special, behind = special[:-1], special[-1:]
    if tokenizer.sep_token_id is None:  # a causal model does not see what stands behind
        behind = []

    if start is not None:
        return {
            "tokenizer": Framing("tokenizer", (start, *special)),
            "start": Framing("start", (start,)),
        }

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    named: dict[str, list[int | None]] = {
        "bos": [bos],
        "eos": [eos],
        "eos-bos": [eos, bos],
        "none": [],
        "tokenizer": [*special],
        "newline": [*plain("\n\n")],
        "packed": [*plain(_PREDECESSOR), eos if eos is not None else bos],
    }
    for token in begin_tokens:
        named |= {f"bos-{token}": [token], f"eos-bos-{token}": [eos, token]}
    for role in ROLES:
        opening = _chat_opening(tokenizer, role)
        if opening is not None:
            named[f"chat-{role}"] = [*plain(opening)]
    return {
        name: Framing(
            name,
            tuple(id_ for id_ in ids if id_ is not None),
            tuple(behind) if name == "tokenizer" else (),
        )
        for name, ids in named.items()
        if None not in ids
    }


def block_framings(checkpoint: Checkpoint) -> list[Framing]:
    """Return the framings of packed documents: blocks of 64, 256, 1024 ... tokens.

    The longest is the context, where that is no longer than `LARGEST_BLOCK`. None for a masked
    model and for an encoder-decoder, whose documents are not packed.
    """
    if checkpoint.family.objective != "causal" or checkpoint.decoder_start is not None:
        return []
    largest = min(checkpoint.context_tokens, LARGEST_BLOCK)
    sizes = {largest}
    size = SMALLEST_BLOCK
    while size < largest:
        sizes.add(size)
        size *= 4
    return [_blocks(checkpoint.tokenizer, size, "eos", 0) for size in sorted(sizes)]


def other_blocks(checkpoint: Checkpoint, framing: Framing) -> list[Framing]:
    """Return blocks of half and of twice the size, and what else may stand between documents."""
    tokenizer, size = checkpoint.tokenizer, framing.block
    others = [_blocks(tokenizer, size, between, 0) for between in ("bos", "none")]
    others += [
        _blocks(tokenizer, each, "eos", 0)
        for each in (size // 2, size * 2)
        if SMALLEST_BLOCK <= each < min(checkpoint.context_tokens, LARGEST_BLOCK)
    ]
    distinct = {(other.block, other.prefix): other for other in reversed(others)}
    distinct.pop((framing.block, framing.prefix), None)
    return list(distinct.values())


def _blocks(tokenizer: Any, size: int, between: str, offset: int) -> Framing:
    """Return the framing of documents packed into blocks, with a token between two of them.

    ``eos`` is the end token, or the begin token where there is none.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    token = {"eos": bos if eos is None else eos, "bos": bos, "none": None}[between]
    name = f"blocks-{size}{'' if between == 'eos' else f'-{between}'}"
    return Framing(
        f"{name}+{offset}" if offset else name,
        () if token is None else (token,),
        block=size,
        offset=offset,
    )


def untried_roles(tokenizer: Any) -> list[str]:
    """Return the roles whose turns the chat template cannot open: their framings are not tried.

    It raises an error, or leaves the message out. Empty without a template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    return [role for role in ROLES if _chat_opening(tokenizer, role) is None]


def _chat_opening(tokenizer: Any, role: str) -> str | None:
    """Return what the chat template puts before a role's first words; None without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    for content in ("", "."):  # some templates refuse an empty question, some lack a system's turn
        question = [] if role == "user" else [{"role": "user", "content": content}]
        for system in ([], [{"role": "system", "content": content}]):
            messages = [*system, *question, {"role": role, "content": _MARK}]
            try:
                text = render_chat(tokenizer, messages)
            except TemplateRefusedError:  # a template may refuse a role in any way it likes
                continue
            if _MARK in text:
                return text.partition(_MARK)[0]
    return None
