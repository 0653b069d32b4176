"""Token-classification checkpoints whose class of every word is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def word_tokenizer(words: list[str], *, longest: int = 32) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows these words, ``##`` before what goes on within one."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=longest, pad_token="[PAD]",
        unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip


def write_word_tagger(folder: Path, class_of: Mapping[str, str], *, classes: list[str]) -> str:
    """Write a BERT without layers: a word has the class of the table, any other word the first.

    Returns:
        The folder, as the setting ``ner`` names it.
    """
    tokenizer = word_tokenizer(list(class_of))
    size = len(tokenizer)
    config: Any = BertConfig(
        vocab_size=size, hidden_size=size, num_hidden_layers=0, num_attention_heads=1,
        max_position_embeddings=32, id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embeddings: Any = model.bert.embeddings
        embeddings.word_embeddings.weight.copy_(torch.eye(size))
        embeddings.LayerNorm.weight.fill_(1)
        model.classifier.bias[0] = 1
        for word, name in class_of.items():
            number = tokenizer.convert_tokens_to_ids(word)
            model.classifier.weight[classes.index(name), number] = 9
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
