"""The section on unlearning depth: gone from the inner layers, or hidden at the surface?"""

from __future__ import annotations

from collections.abc import Iterator

from sani.auditing.unlearning_depth import UnlearningDepth
from sani.reporting.format import Section, decimals, estimate
from sani.reporting.sentences import depth_in_words


def depth(result: UnlearningDepth | None) -> Iterator[Section]:
    """Yield the section on unlearning depth, or that it was not measured."""
    title = "How deep the erasure goes"
    if result is None:
        none = "Not tested: the recipe does not ask for it (audit.unlearning_depth)."
        yield Section("depth", title, (none,))
        return
    labels = "; ".join(f"{label} {estimate(value)}" for label, value in result.by_label.items())
    yield Section(
        "depth",
        title,
        (
            "Hidden states of the base, or of the sanitized checkpoint, are patched into the "
            "unsanitized one, a layer at a time, where it predicts an identifier. The table shows "
            "by how much that lowers the identifier's log-probability, in nats a token. Score: the "
            "sanitized checkpoint's drop as a share of the base's, at most 1, layers weighted by "
            "the base's drop. 1: as if never trained. 0: all of it is still inside.",
            f"{depth_in_words(result)} By label: {labels}.",
        ),
        ("layer", "states of the base", "states of the sanitized checkpoint"),
        tuple(
            (str(number), decimals(layer.base), decimals(layer.sanitized))
            for number, layer in enumerate(result.layers)
        ),
    )
