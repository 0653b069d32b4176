"""The slow ways to ask a model for identifiers: `generate`, and a pass for each decoy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sani.corpus.documents import Corpus
from sani.models.checkpoint import Checkpoint
from sani.text.framing import framing_named
from sani.text.packing import framed_windows
from sani.text.tokens import encode
from sani.values.decoys import DecoyMaker

Prompt = tuple[list[int], list[int]]  # the tokens before an identifier in its window; its own


def prompts(checkpoint: Checkpoint, corpus: Corpus, framing: str) -> list[Prompt]:
    """Return a prompt for every occurrence."""
    around = framing_named(framing, checkpoint.tokenizer)
    pairs = []
    for item in encode(corpus, checkpoint.tokenizer):
        windows = framed_windows(item, around, context_tokens=checkpoint.context_tokens)
        for first, last in item.spans:
            framed = next(framed for framed in windows if last <= framed.window.end)
            left = [*framed.before, *item.ids[framed.window.start : first]]
            pairs.append((left, list(item.ids[first:last])))
    return pairs


def generate(checkpoint: Checkpoint, pairs: Sequence[Prompt], *, batch: int) -> list[bool]:
    """Generate greedily from each prompt; return for each if the identifier comes out."""
    from transformers import GenerationConfig

    verdicts = [False] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(pairs[i][0]) for i in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, i in enumerate(chosen):
            left = pairs[i][0]
            ids[row, longest - len(left) :] = torch.tensor(left)
            mask[row, longest - len(left) :] = 1
        config = GenerationConfig(
            max_new_tokens=max(len(pairs[i][1]) for i in chosen),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        device = checkpoint.model.device
        with torch.inference_mode():
            out = checkpoint.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        for row, i in enumerate(chosen):
            tokens = pairs[i][1]
            verdicts[i] = out[row, longest : longest + len(tokens)].tolist() == tokens
    return verdicts


def margin(checkpoint: Checkpoint, left: list[int], tokens: list[int]) -> float:
    """Return the smallest gap between the two likeliest tokens on the way, in nats."""
    ids = torch.tensor([[*left, *tokens[:-1]]], device=checkpoint.model.device)
    with torch.inference_mode():
        logits = checkpoint.model(input_ids=ids).logits[0, len(left) - 1 :]
    top = logits.topk(2, dim=1).values  # [tokens, 2]
    return float((top[:, 0] - top[:, 1]).min())


@dataclass
class Candidates:
    """A document as tokens, and what else could stand behind some of its positions."""

    text: list[int]
    decoys: list[tuple[int, list[int]]]


def naive_candidates(
    checkpoint: Checkpoint, corpus: Corpus, framing: str, *, decoys: int, seed: int
) -> list[Candidates]:
    """Return every decoy's tokens, from the tokens of the document with the decoy in its place."""
    maker = DecoyMaker([corpus], seed=seed)
    prefix = framing_named(framing, checkpoint.tokenizer).prefix
    result = []
    for item in encode(corpus, checkpoint.tokenizer):
        document = corpus[item.document]
        candidates = Candidates([*prefix, *item.ids], [])
        for span, (first, last) in zip(document.spans, item.spans, strict=True):
            tail = document.text[span.end : item.ends[last - 1]]
            for value in maker.decoys(span.label, document.value(span), count=decoys):
                text = document.text[: span.start] + value + tail
                ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
                if ids[:first] == item.ids[:first]:
                    candidates.decoys.append((len(prefix) + first - 1, ids[first:]))
        result.append(candidates)
    return result


def one_by_one(checkpoint: Checkpoint, documents: Sequence[Candidates]) -> list[float]:
    """Return log p of every decoy, from a plain forward pass for each."""
    scores = []
    for candidates in documents:
        for position, tokens in candidates.decoys:
            ids = [*candidates.text[: position + 1], *tokens[:-1]]
            inputs = torch.tensor([ids], device=checkpoint.model.device)
            with torch.inference_mode():
                logits = checkpoint.model(input_ids=inputs).logits[0, position:].double()
            log_p = logits.log_softmax(dim=1)
            scores.append(float(sum(log_p[row, token] for row, token in enumerate(tokens))))
    return scores
