"""Framing: the tokens that stand around every document, as training may have put them there.

An audit with another framing than training's sees less leakage than there is, so it tries all that
are plausible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()


# Stands for a packed document's predecessor: any text will do, what counts is that some is there.
_PREDECESSOR = "The patient was seen again and went home. There were no further complaints. " * 3
_MARK = "\u2603"
ROLES = ("user", "assistant")  # whose turns a chat template opens
# A begin token that the tokenizer does not call so; by its number any tokenizer has this framing.
_NUMBERED = re.compile(r"(?:eos-)?bos-(\d+)")


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
