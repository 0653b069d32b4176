"""Masked language models of single words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from sani.models.checkpoint import Checkpoint
from tests.support.architectures import tiny_config
from tests.support.words import WORDS

MASK_ID, CLS, SEP = 2, 0, 1
SPECIAL = ["<s>", "</s>", "<mask>", "name"]


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words of `words.py` that puts begin and end around a text."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS[3:]])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", CLS), ("</s>", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", mask_token="<mask>"
    )


def checkpoint(name: str = "bert", *, seed: int = 1, **changes: Any) -> Checkpoint:
    """Return a random masked model whose predictions are far from even."""
    config = tiny_config(
        name, vocab_size=20, max_position_embeddings=40, pad_token_id=19, **changes
    )
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return Checkpoint(model, tokenizer_of_words(), Path("nowhere"))
