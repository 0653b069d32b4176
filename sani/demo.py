"""Small models that really recite: for `sani demo`, the tests and the benchmarks.

A base model is trained on public text, and a leaky one is that base, fine-tuned on private notes
until it recites them. Both are trained by the repair's own engine with nothing masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sani.checkpoint import Checkpoint
from sani.corpus.documents import Corpus, Document
from sani.erasing.erase import fresh_model
from sani.recipe import MaskObjective, RepairSettings
from sani.repairing.repair import RepairResult, train_

BEGIN, END = "<s>", "</s>"


def new_model(
    texts: Sequence[str],
    *,
    vocab_size: int,
    layers: int,
    hidden: int,
    context: int,
    folder: Path,
    seed: int,
) -> Checkpoint:
    """An untrained Llama with a byte-level BPE tokenizer learnt from ``texts``.

    Args:
        texts: Public text only: a tokenizer's merges can hold an identifier too.
        vocab_size: Most tokens of the vocabulary.
        layers: Transformer layers.
        hidden: Width; a multiple of 32, the size of a head.
        context: Longest input in tokens.
        folder: The tokenizer is saved here.
        seed: Of the weights.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, eos_token=END)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return Checkpoint(fresh_model(config, seed=seed), tokenizer, folder)


def train_on_text(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 2e-3,
    batch_tokens: int = 2048,
    on_step: Callable[[int, int], None] | None = None,
) -> RepairResult:
    """In place: plain next-token training on every token, the begin token in front of each text."""
    corpus = Corpus(
        [Document(str(number), str(number), text) for number, text in enumerate(texts)]
    )
    settings = RepairSettings(
        at_identifiers=MaskObjective(kind="mask"),
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
    )
    return train_(checkpoint, corpus, settings, framing="bos", seed=seed, on_step=on_step)
