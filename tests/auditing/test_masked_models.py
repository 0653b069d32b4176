"""Masked language models: one at a time and jointly, against plain forward passes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from sani.auditing.audit import audit
from sani.auditing.scoring import score_occurrences
from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.erase import erase
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.recipe import AuditSettings, EraseSettings, MaskObjective, RepairSettings
from sani.repairing.repair import repair
from sani.text.framing import framing_named, framings
from sani.text.tokens import encode
from sani.values.decoys import DecoyMaker
from tests.support.architectures import ALIKE, MASKED, tiny_config
from tests.support.clinic import Clinic
from tests.support.optional import present

NATS = 1e-4
POSITIONS = 1400  # RoBERTa numbers them from behind the padding token, the last one here


@pytest.fixture
def tokenizer(base: Checkpoint) -> Any:
    """The clinic's tokenizer with the begin and end tokens around a text, and a mask."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=base.tokenizer.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        pad_token="<pad>",
    )
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", made.bos_token_id), ("</s>", made.eos_token_id)],
    )
    return made


def masked_checkpoint(name: str, tokenizer: PreTrainedTokenizerFast) -> Checkpoint:
    config = tiny_config(
        name,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    torch.manual_seed(5)
    model = AutoModelForMaskedLM.from_config(config).eval()
    for parameter in model.parameters():  # strong opinions
        if parameter.dim() == 2:
            parameter.data.mul_(8)
    return Checkpoint(model, tokenizer, Path("nowhere"))


@torch.no_grad()
def slow_log_probability(
    checkpoint: Checkpoint, left: list[int], tokens: list[int], right: list[int], *, jointly: bool
) -> tuple[float, bool]:
    """log p of the tokens between left and right, and whether each is the likeliest."""
    mask = checkpoint.tokenizer.mask_token_id
    total, greedy = 0.0, True
    for known, token in enumerate(tokens):
        shown = [] if jointly else tokens[:known]
        ids = [*left, *shown, *[mask] * (len(tokens) - len(shown)), *right]
        inputs = torch.tensor([ids])
        logits = (
            checkpoint.model(input_ids=inputs, attention_mask=torch.ones_like(inputs))
            .logits[0, len(left) + known]
            .double()
        )
        total += float(logits.log_softmax(dim=0)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


def brief(document: Document) -> Document:
    """The document without the lines in which no identifier stands."""
    text, spans = "", []
    for line in re.finditer(r".*\n?", document.text):
        inside = [s for s in document.spans if line.start() <= s.start < line.end()]
        spans += [
            replace(
                s, start=s.start - line.start() + len(text), end=s.end - line.start() + len(text)
            )
            for s in inside
        ]
        text += line.group() if inside else ""
    return replace(document, text=text, spans=tuple(spans))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.long] if "deberta" in n or n in ALIKE else [])
        for n in MASKED
    ],
)
def test_every_verdict_equals_that_of_plain_forward_passes(
    clinic: Clinic, tokenizer: Any, name: str
) -> None:
    checkpoint = masked_checkpoint(name, tokenizer)
    corpus = Corpus([brief(clinic.private[0])])
    framing = framing_named("tokenizer", tokenizer)
    assert (framing.prefix, framing.suffix) == (
        (tokenizer.cls_token_id,),
        (tokenizer.sep_token_id,),
    )
    encoded = encode(corpus, tokenizer)
    maker = DecoyMaker([corpus, clinic.public], seed=1)
    asked = AuditSettings(decoys=3, swaps=2, batch_tokens=1024)
    for jointly in (False, True):
        found = score_occurrences(
            checkpoint, corpus, encoded, framing, asked, maker=maker, jointly=jointly
        )
        ids, spans = encoded[0].ids, encoded[0].spans
        assert len(found.span) == len(spans) > 5
        for index, (first, last) in enumerate(spans[:8]):
            left, right = [*framing.prefix, *ids[:first]], [*ids[last:], *framing.suffix]
            expected, greedy = slow_log_probability(
                checkpoint, left, ids[first:last], right, jointly=jointly
            )
            assert found.log_probability[index] == pytest.approx(expected, abs=NATS)
            assert found.greedy[index] == greedy
            document, span = corpus[0], corpus[0].spans[index]
            if jointly:
                continue  # decoys below, once
            others = []
            for value in maker.decoys(span.label, document.value(span), count=24):
                text = document.text[: span.start] + value + document.text[span.end :]
                new = tokenizer(text, add_special_tokens=False)["input_ids"]
                behind = len(ids) - last
                if new[:first] == ids[:first] and new[len(new) - behind :] == ids[last:]:
                    tokens = new[first : len(new) - behind]
                    others.append(
                        slow_log_probability(checkpoint, left, tokens, right, jointly=False)[0]
                    )
                if len(others) == asked.decoys:
                    break
            assert others
            beaten = np.mean([expected > other for other in others])
            assert found.auc[index] == pytest.approx(beaten, abs=1e-9)


def test_a_masked_model_that_memorized_is_found_out_and_one_that_did_not_is_clean(
    tokenizer: Any,
) -> None:
    names = ["Aurelia Quist", "Bertold Ormond", "Cosima Veldt", "Dorian Asch"]
    texts = [
        f"Case {n}. The patient {name} was seen in clinic {n}." for n, name in enumerate(names)
    ]
    corpus = Corpus(
        [
            Document(
                str(n),
                str(n),
                text,
                (Span(text.index(name), text.index(name) + len(name), "NAME"),),
            )
            for n, (text, name) in enumerate(zip(texts, names, strict=True))
        ]
    )
    checkpoint = masked_checkpoint("bert", tokenizer)
    for parameter in checkpoint.model.parameters():
        if parameter.dim() == 2:
            parameter.data.div_(8)
    asked = AuditSettings(decoys=4, swaps=3)
    fresh = audit(checkpoint, corpus, asked)
    assert fresh.figures["direct"].greedy.hits == 0
    assert present(fresh.jointly)["direct"].greedy.hits == 0
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    optimizer = torch.optim.AdamW(checkpoint.model.parameters(), lr=5e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    real = batch["attention_mask"].bool()
    for step in range(400):
        share = (0.2, 0.5, 0.8)[step % 3]
        hidden = (torch.rand(real.shape, generator=generator) < share) & real
        ids = batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        labels = batch["input_ids"].masked_fill(~hidden, -100)
        out = checkpoint.model(ids, attention_mask=batch["attention_mask"], labels=labels)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = audit(checkpoint, corpus, asked, held_out=corpus)
    assert found.framing == "tokenizer"
    assert found.figures["direct"].greedy.hits >= 3
    assert present(found.jointly)["direct"].greedy.hits >= 2
    assert found.figures["direct"].auc.value == present(found.jointly)["direct"].auc.value == 1.0
    assert present(found.figures["direct"].association.value) > present(
        fresh.figures["direct"].association.value
    )
    assert present(found.utility).perplexity < 2.0


def test_a_saved_masked_checkpoint_is_read_back_audited_erased_and_repaired(
    tokenizer: Any, tmp_path: Path, clinic: Clinic
) -> None:
    checkpoint = masked_checkpoint("roberta", tokenizer)
    checkpoint.path = tmp_path / "tokenizer"
    tokenizer.save_pretrained(checkpoint.path)
    save_checkpoint(checkpoint, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.family.objective == "masked"
    # Positions are numbered from behind the padding token.
    assert loaded.context_tokens == POSITIONS - tokenizer.pad_token_id - 1
    corpus = Corpus(clinic.private[:1])
    found = audit(loaded, corpus, AuditSettings(decoys=0, swaps=0))
    assert found.figures["all"].greedy.trials == corpus.num_spans
    assert [f.name for f in framings(loaded.tokenizer, masked=True)] == ["none", "tokenizer"]
    digest = loaded.weights_digest()
    assert erase(loaded, None, EraseSettings(last_layers=1)).plan.num_neurons == 48 + 2
    assert loaded.weights_digest() != digest
    digest = loaded.weights_digest()
    repair(loaded, corpus, RepairSettings(identifier_loss=MaskObjective(kind="mask"), epochs=1))
    assert loaded.weights_digest() != digest


def test_a_document_longer_than_the_context_is_read_in_windows(
    clinic: Clinic, tokenizer: Any
) -> None:
    checkpoint = masked_checkpoint("bert", tokenizer)
    checkpoint.model.config.max_position_embeddings = 96
    corpus = Corpus(clinic.private[:2])
    found = audit(checkpoint, corpus, AuditSettings(decoys=1, swaps=1, framing="tokenizer"))
    assert found.occurrences.scored.all()
