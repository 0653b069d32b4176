"""Encoder-decoder models of single words, and documents with a source text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from sani.corpus.documents import Corpus
from sani.models.checkpoint import Checkpoint
from tests.support.architectures import tiny_config
from tests.support.words import TEXTS, WORDS, corpus_of

SOURCES = ["m l", "k j i h", "a", "b d f h j", "c"]


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words that puts around a text what T5 or BART does."""
    level = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<s>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = "<s> $A </s>" if name == "bart" else "$A </s>"
    level.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "sep_token": "</s>"} if name == "bart" else {}
    return PreTrainedTokenizerFast(tokenizer_object=level, eos_token="</s>", **special)


def checkpoint(name: str, *, seed: int = 1) -> Checkpoint:
    config = tiny_config(
        name, vocab_size=len(WORDS), decoder_start_token_id=1 if name == "bart" else 0,
        dropout=0.0, dropout_rate=0.0, attention_dropout=0.0, activation_dropout=0.0,
        forced_bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        if name == "bart":
            model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape))
    return Checkpoint(model, tokenizer_of(name), Path("nowhere"))


def pairs(texts: Sequence[str] = TEXTS) -> Corpus:
    """Return the documents of `corpus_of`, each with a source text."""
    return Corpus(
        [
            replace(document, source_text=SOURCES[number % len(SOURCES)])
            for number, document in enumerate(corpus_of(texts))
        ]
    )
