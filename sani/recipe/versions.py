"""Changes between the versions of the recipe's format."""

from __future__ import annotations

VERSION = 2

RENAMED_IN_2 = {
    "erase.toward_base": "erase.interpolate_to_base",
    "repair.at_identifiers": "repair.identifier_loss",
    "repair.keep_skill": "repair.retain_weight",
    "repair.kept_states": "repair.activation_cache",
}
# Keys that went, with the value that holds now for everybody.
DELETED_IN_2 = {
    "scan.indirect.shortest": "always 3",
    "audit.sampler": "always temperature 1.0, top_k 40, top_p 1.0",
    "audit.generation.opening_tokens": "always 32",
    "audit.generation.file_samples": "the largest of empty, headings and openings",
    "erase.selector.vote": "always 0.1 (integrated_gradients)",
    "erase.selector.cap": "always 5.0 (hard_concrete)",
    "erase.selector.penalty": "always 5.0 (hard_concrete)",
    "repair.identifier_loss.beta": "always 0.1 (npo)",
    "repair.warmup_fraction": "always 0.1",
    "repair.weight_decay": "always 0.0",
    "attack.quantize.group": "always 128",
    "attack.guidance.plausible": "always 1e-5",
    "attack.layers.folds": "always 5",
    "attack.layers.penalty": "always 1.0",
    "attack.neighbours.left_out": "always 3",
}


def version_1_refusal() -> str:
    """Return why a recipe of version 1 is refused: every key that is now another, or gone."""
    width = max(map(len, (*RENAMED_IN_2, *DELETED_IN_2)))
    renamed = [f"  {old:{width}}  -> {new}" for old, new in RENAMED_IN_2.items()]
    deleted = [f"  {old:{width}}  -> deleted; {now}" for old, now in DELETED_IN_2.items()]
    return "\n".join(
        [
            "version: 1 is an older format, which this sani does not read. Rename or delete these "
            "keys (in escalation.ladder too) and set version: 2",
            *renamed,
            *deleted,
        ]
    )
