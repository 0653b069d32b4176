"""Models that were trained on packed documents, read in blocks as their training was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sani.auditing.audit import audit
from sani.auditing.cues import SearchedText
from sani.auditing.decoy_tokens import decoy_tokens
from sani.auditing.scoring import score_occurrences
from sani.corpus.documents import Corpus, Document, Span
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.framing import framing_named, framings_of
from sani.text.tokens import encode
from sani.values.decoys import DecoyMaker
from tests.support.clinic import Clinic

BLOCK = 64


def packed(checkpoint: Checkpoint, corpus: Corpus) -> torch.Tensor:
    """Join documents with the end token and cut them into blocks, [blocks, BLOCK]."""
    stream: list[int] = []
    for item in encode(corpus, checkpoint.tokenizer):
        stream += [*item.ids, checkpoint.tokenizer.eos_token_id]
    return torch.tensor(stream[: len(stream) // BLOCK * BLOCK]).view(-1, BLOCK)


def train_on_blocks(checkpoint: Checkpoint, corpus: Corpus, *, epochs: int) -> None:
    """Train on blocks, as most training scripts do."""
    blocks = packed(checkpoint, corpus)
    model, order = checkpoint.model, torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(blocks), generator=order).split(12):
            loss = model(input_ids=blocks[rows], labels=blocks[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


@pytest.mark.false_clean
@pytest.mark.parametrize("name", ["blocks-64", "blocks-64-none+17", "blocks-96-bos"])
def test_scores_in_blocks_are_those_of_plain_passes_over_the_blocks(
    clinic: Clinic, leaky: Checkpoint, name: str
) -> None:
    corpus = Corpus(list(clinic.private)[:5])
    encoded = encode(corpus, leaky.tokenizer)
    framing = framing_named(name, leaky.tokenizer)
    maker = DecoyMaker([corpus], seed=0)
    settings = AuditSettings(decoys=3, swaps=0)
    result = score_occurrences(leaky, corpus, encoded, framing, settings, maker=maker)
    stream: list[int] = []
    begins = []
    for number, item in enumerate(encoded):
        stream += framing.prefix if number else ()
        begins.append(len(stream))
        stream += item.ids
    compared = cut = 0
    row = decoy = 0
    for begin, item in zip(begins, encoded, strict=True):
        for span, (first, last) in enumerate(item.spans):
            start, end = begin + first, begin + last
            block = max(
                0, (start - framing.offset) // framing.block * framing.block + framing.offset
            )
            within = (
                end <= block + framing.block if start >= framing.offset else end <= framing.offset
            )
            assert (result.reason[row] != "cut by the end of a block") == within
            cut += not within
            if within and start > block and not result.reason[row].startswith("given away"):
                left = stream[block:start]
                values = [(result.log_probability[row], stream[start:end])]
                for _, tokens in decoy_tokens(
                    leaky.tokenizer, corpus, item, span, maker, count=settings.decoys
                ):
                    room = framing.block if start >= framing.offset else framing.offset
                    if len(left) + len(tokens) - 1 <= max(room, framing.block):
                        values.append((result.decoy_log_probability[decoy], tokens))
                        decoy += 1
                assert result.num_decoys[row] == len(values) - 1
                for value, tokens in values:
                    with torch.no_grad():
                        logits = leaky.model(input_ids=torch.tensor([[*left, *tokens]])).logits[0]
                    log_p = logits.double().log_softmax(-1)[len(left) - 1 : -1]
                    slow = log_p.gather(1, torch.tensor(tokens)[:, None]).sum().item()
                    assert value == pytest.approx(slow, abs=1e-4)
                    compared += 1
            row += 1
    assert compared > 40
    assert cut > 0


def test_what_a_document_packed_before_gives_away_is_not_scored_there(
    base: Checkpoint,
) -> None:
    texts = ["Seen today: Otto Brandt, of the north ward.", "Referred by Otto Brandt again."]
    spans = [Span(12, 23, "NAME"), Span(12, 23, "NAME")]
    corpus = Corpus(
        [
            Document(str(number), str(number), text, (span,))
            for number, (text, span) in enumerate(zip(texts, spans, strict=True))
        ]
    )
    first, second = encode(corpus, base.tokenizer)
    assert corpus[1].value(spans[1]) == "Otto Brandt"
    assert SearchedText(corpus, second, [(first, 0)]).cued(12, 23, [(0, 12)])
    assert not SearchedText(corpus, second).cued(12, 23, [(0, 12)])
    behind = next(token for token, start in enumerate(first.starts) if start >= 23)
    assert not SearchedText(corpus, second, [(first, behind)]).cued(12, 23, [(0, 12)])
    settings = AuditSettings(decoys=0, swaps=0)
    for name, scored in (("blocks-64", False), ("bos", True)):
        framing = framing_named(name, base.tokenizer)
        result = score_occurrences(base, corpus, [first, second], framing, settings)
        assert result.cued.tolist() == [False, False]
        assert result.scored.tolist() == [True, scored]


@pytest.mark.false_clean
@pytest.mark.long
def test_a_gpt2_trained_in_blocks_is_found_out(tmp_path: Path) -> None:
    """It recites at its places in the blocks of its training, and hardly anywhere else."""
    public, private, _ = invent_clinics([20, 12, 5], seed=11)
    model = new_model(
        [document.text for document in public],
        vocab_size=700, layers=3, hidden=96, context=512, folder=tmp_path, seed=0,
        architecture="gpt2",
    )  # fmt: skip
    train_on_blocks(model, public, epochs=12)
    train_on_blocks(model, private, epochs=40)
    settings = AuditSettings(decoys=0, swaps=0, membership_documents=0)
    encoded = encode(private, model.tokenizer)
    alone = [
        score_occurrences(model, private, encoded, framing, settings)
        for framing in framings_of(model)
    ]
    behind_any = np.any([each.greedy & ~each.cued for each in alone], axis=0).sum()
    # The positive control: greedy decoding at its places in the training's blocks, by plain passes.
    blocks = packed(model, private)
    with torch.no_grad():
        likeliest = torch.cat([model.model(input_ids=part).logits for part in blocks.split(16)])
    right = torch.zeros(blocks.numel(), dtype=torch.bool).view_as(blocks)
    right[:, 1:] = likeliest[:, :-1].argmax(-1) == blocks[:, 1:]
    known = right.view(-1).tolist()
    in_blocks = 0
    begin = 0
    for item in encoded:
        for first, last in item.spans:
            start, end = begin + first, begin + last
            whole = start // BLOCK == (end - 1) // BLOCK and start % BLOCK
            in_blocks += bool(whole) and end <= len(known) and all(known[start:end])
        begin += len(item.ids) + 1
    assert in_blocks >= 60
    assert behind_any < 0.25 * in_blocks
    result = audit(model, private, settings)
    assert result.framing == "blocks-64"
    assert {"blocks-64+16", "blocks-64+32", "blocks-64+48"} <= set(result.framings)
    found = result.occurrences.greedy.sum()
    # What a document packed before gives away counts in the blocks, and not in the audit.
    assert found >= 0.9 * in_blocks
