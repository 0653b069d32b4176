"""Models of single words, and documents in which the word after ``name`` is an identifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.reinit import fresh_model
from sani.models.checkpoint import Checkpoint
from sani.recipe import AnchorObjective, MaskObjective, RepairSettings
from sani.text.batches import Batch, make_batches
from sani.text.framing import Framing
from sani.text.tokens import encode

WORDS = ["<s>", "</s>", "name", *"abcdefghijklm"]
COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TEXTS = [
    "a b name c d e f",
    "name f g",
    "b b name e d c b a h i j k l m a b c d e f name g h",  # longer than the context
    "d name k",
    "l m a b c",
]
MASK, ANCHOR = MaskObjective(kind="mask"), AnchorObjective(kind="anchor", weight=3.0)


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at blanks; the first two words are begin and end."""
    word_level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<s>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=word_level, bos_token="<s>", eos_token="</s>")


def llama() -> LlamaConfig:
    return LlamaConfig(**COMMON, num_key_value_heads=2)


def gpt2() -> GPT2Config:
    """Return a configuration with dropout, so that the state of the random numbers matters."""
    return GPT2Config(**COMMON, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)


def checkpoint(config: PretrainedConfig | None = None, *, seed: int = 1) -> Checkpoint:
    """Return a random model whose predictions are far from even."""
    model = fresh_model(config or llama(), seed=seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=chance))
            elif name.endswith("bias"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=chance))
    return Checkpoint(model, word_tokenizer(), Path("nowhere"))


def corpus_of(texts: Sequence[str] = TEXTS, *, after: str = "name") -> Corpus:
    """Return documents in which the word after each ``after`` is an identifier."""
    documents = []
    for number, text in enumerate(texts):
        words, spans, start = text.split(), [], 0
        for position, word in enumerate(words):
            if position and words[position - 1] == after:
                spans.append(Span(start, start + len(word), "NAME"))
            start += len(word) + 1
        documents.append(Document(str(number), str(number), text, tuple(spans)))
    return Corpus(documents)


def batches_of(sick: Checkpoint, corpus: Corpus, *, batch_tokens: int = 64) -> list[Batch]:
    return make_batches(
        encode(corpus, sick.tokenizer),
        Framing("bos", (0,)),
        context_tokens=sick.context_tokens,
        batch_tokens=batch_tokens,
    )


def settings_of(objective: Any = MASK, **changes: Any) -> RepairSettings:
    values = {"epochs": 3, "learning_rate": 1e-2, "batch_tokens": 64, **changes}
    return RepairSettings(identifier_loss=objective, **values)


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in checkpoint.model.named_parameters()}
