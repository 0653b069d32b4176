"""Documents drawn from a model itself, to repair it where its training text is gone or never was.

What it recites most often is what it writes most often, so the text to scan, to mask and to repair
with can be its own. What it does not write, such a repair does not reach.
"""

from __future__ import annotations

from collections.abc import Callable

from sani.auditing.generation import Prompt, sample
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.corpus.documents import Corpus, Document
from sani.errors import AuditError
from sani.models.checkpoint import Checkpoint
from sani.text.tokens import framing_named

BATCH_TOKENS = 16384


def sample_documents(
    checkpoint: Checkpoint,
    number: int,
    *,
    first: int = 0,
    new_tokens: int = 256,
    sampler: Sampler = DEFAULT_SAMPLER,
    framing: str = "auto",
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Texts that a causal model writes after nothing but its framing, a subject each.

    Args:
        checkpoint: A causal language model.
        number: How many.
        first: The number of the first; other numbers are other texts of the same seed.
        new_tokens: Tokens of a text, at most; it ends at the end token.
        sampler: Temperature, top-k and top-p.
        framing: What stands before a document, by name.
        seed: Of everything that is drawn.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If there is no token to begin with, or the model gives NaN.
    """
    start = framing_named(framing, checkpoint.tokenizer).prefix
    if not start:
        raise AuditError(
            f"framing {framing} gives no token to begin with; choose one that does, such as bos"
        )
    room = min(new_tokens, checkpoint.context_tokens - len(start))
    texts = sample(
        checkpoint,
        [Prompt("empty", first + n, start) for n in range(number)],
        new_tokens=room,
        sampler=sampler,
        batch_tokens=BATCH_TOKENS,
        seed=seed,
        on_step=on_step,
    )
    decode = checkpoint.tokenizer.decode
    names = [f"sampled-{first + n}" for n in range(number)]
    return Corpus(
        [
            Document(name, name, decode(tokens, skip_special_tokens=True).strip())
            for name, tokens in zip(names, texts, strict=True)
        ]
    )
