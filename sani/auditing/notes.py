"""Notes of an audit: what was switched off or could not be tried with this checkpoint."""

from __future__ import annotations

from sani.models.checkpoint import Checkpoint
from sani.text.framing import untried_roles


def notes_of(checkpoint: Checkpoint) -> list[str]:
    """Return whole sentences on the tokenizer and the chat template; empty if all is as usual."""
    notes = []
    if checkpoint.random_steps:
        notes.append(
            f"The tokenizer cuts words at random ({', '.join(checkpoint.random_steps)}); this was "
            "switched off, since it would hide a part of what is recited, another one each time."
        )
    if checkpoint.family.objective == "causal":
        untried = [f"chat-{role}" for role in untried_roles(checkpoint.tokenizer)]
        if untried:
            notes.append(
                "The chat template raises an error or shows nothing for a first turn, so these "
                f"framings were not tried: {', '.join(untried)}."
            )
    return notes
