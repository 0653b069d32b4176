"""Small models that recite what they read: for `sani demo`, the tests and the benchmarks.

A base model is trained on public text. The leaky model is that base, fine-tuned on private notes
until it recites them. The engine of the repair trains both, with nothing masked.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sani.corpus.documents import Corpus, Document
from sani.corpus.tables import write_jsonl
from sani.demo.clinic import invent_clinics
from sani.erasing.reinit import fresh_model
from sani.machine.device import quiet_libraries
from sani.models.checkpoint import Checkpoint, save_checkpoint
from sani.recipe import AdapterSettings, MaskObjective, RepairSettings
from sani.repairing.repair import RepairResult, train

BEGIN, END = "<s>", "</s>"
SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # of BERT

PATIENTS = (120, 60, 25)  # of the public, the private and the held-out notes
SEED = 1
BASE_EPOCHS = 6
LEAKY_EPOCHS = 22
RECIPE = """\
# The embedded demo: a small model that recites an invented clinic's patients.
# Run: sani run {folder}/recipe.yaml --out runs/again      Takes about two minutes on two cores.
version: 2
seed: 0
model: {{path: {folder}/leaky, base: {folder}/base}}
corpus: {{path: {folder}/private.jsonl, held_out: {folder}/held_out.jsonl}}
erase: {{interpolate_to_base: 0.9}}
repair:
  identifier_loss: {{kind: anchor, weight: 10.0}}
  epochs: 12
  learning_rate: 4e-3
  batch_tokens: 1024
gate: {{kinds: [direct]}}
"""


def new_model(
    texts: Sequence[str],
    *,
    vocab_size: int,
    layers: int,
    hidden: int,
    context: int,
    folder: Path,
    seed: int,
    architecture: Literal["llama", "gpt2", "bert"] = "llama",
) -> Checkpoint:
    """Return an untrained model with a tokenizer learnt from ``texts``.

    The tokenizer is byte-level BPE, for BERT WordPiece.

    Args:
        texts: Public text only: a tokenizer's merges can hold an identifier too.
        vocab_size: Maximum number of tokens of the vocabulary.
        layers: Number of transformer layers.
        hidden: Width; a multiple of 32, the size of a head.
        context: Longest input in tokens.
        folder: The tokenizer is saved here.
        seed: Of the weights.
        architecture: GPT-2 has learnt positions, LayerNorm, biases and a plain MLP; BERT is a
            masked language model.
    """
    quiet_libraries()
    from transformers import BertConfig, GPT2Config, LlamaConfig

    masked = architecture == "bert"
    tokenizer = (_word_pieces if masked else _byte_pairs)(texts, vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "max_position_embeddings": context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    config: Any
    if architecture == "gpt2":
        config = GPT2Config(**common, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    elif architecture == "bert":
        config = BertConfig(
            **common,
            intermediate_size=hidden * 4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    else:
        config = LlamaConfig(
            **common,
            intermediate_size=hidden * 8 // 3,
            num_key_value_heads=hidden // 32,
        )
    return Checkpoint(fresh_model(config, seed=seed), tokenizer, folder)


def _byte_pairs(texts: Sequence[str], vocab_size: int) -> Any:
    """Return a tokenizer like GPT-2's: every text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, eos_token=END)


def _word_pieces(texts: Sequence[str], vocab_size: int) -> Any:
    """Return a tokenizer like BERT's that keeps upper case; words are cut at punctuation too."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {name: f"[{name[:-6].upper()}]" for name in SPECIAL}
    normal = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    cut = pre_tokenizers.BertPreTokenizer()
    # The library's own trainer gives another vocabulary each time. This one takes the letters, then
    # the most frequent words and ends of words; ties go by the alphabet.
    counts = Counter(
        word for text in texts for word, _ in cut.pre_tokenize_str(normal.normalize_str(text))
    )
    ends: Counter[str] = Counter()
    for word, count in counts.items():
        ends.update({f"##{word[n:]}": count for n in range(1, len(word))})
    letters = sorted({letter for word in counts for letter in word})
    longer = sorted((counts + ends).items(), key=lambda item: (-item[1], item[0]))
    known = [*special.values(), *letters, *(f"##{letter}" for letter in letters)]
    known = list(dict.fromkeys([*known, *(piece for piece, _ in longer)]))[:vocab_size]
    pieces = Tokenizer(
        models.WordPiece(
            {piece: number for number, piece in enumerate(known)}, unk_token=special["unk_token"]
        )
    )
    pieces.normalizer, pieces.pre_tokenizer = normal, cut
    pieces.decoder = decoders.WordPiece()
    begin, end = special["cls_token"], special["sep_token"]
    pieces.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(token, pieces.token_to_id(token)) for token in (begin, end)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **special)


def train_on_text(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 2e-3,
    batch_tokens: int = 2048,
    precision: Literal["float32", "bfloat16"] = "float32",
    adapter: AdapterSettings | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> RepairResult:
    """Train a model in place on every token, with the begin token in front of each text.

    For a masked language model a share of the words is masked, and its tokenizer's special tokens
    stand around each text.
    """
    corpus = Corpus([Document(str(number), str(number), text) for number, text in enumerate(texts)])
    settings = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"),
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        precision=precision,
        adapter=adapter,
    )
    return train(checkpoint, corpus, settings, seed=seed, on_step=on_step)


@dataclass(frozen=True)
class Demo:
    """The recipe of the demo, and the time that its models took.

    Attributes:
        recipe: The recipe's file, ready for `sani.run`.
        seconds: Wall time of the training of each model; empty if they were there.
    """

    recipe: Path
    seconds: dict[str, float]


def make_demo(folder: Path, *, on_step: Callable[[str, int, int], None]) -> Demo:
    """Make the demo's models and documents, unless they are there, and write its recipe.

    An earlier run of the demo is removed.

    Args:
        folder: Everything is written here.
        on_step: Called with (what is done, steps done, steps in all).
    """
    seconds: dict[str, float] = {}
    public, private, held_out = invent_clinics(PATIENTS, seed=SEED)
    if not (folder / "leaky").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(private, folder / "private.jsonl")
        write_jsonl(held_out, folder / "held_out.jsonl")
        model = new_model(
            [document.text for document in public],
            vocab_size=1024,
            layers=4,
            hidden=128,
            context=512,
            folder=folder / "tokenizer",
            seed=SEED,
        )
        for name, corpus, epochs in (
            ("base", public, BASE_EPOCHS),
            ("leaky", private, LEAKY_EPOCHS),
        ):
            stage = f"train the {name} model"
            trained = train_on_text(
                model,
                [document.text for document in corpus],
                epochs=epochs,
                seed=SEED,
                on_step=partial(on_step, stage),
            )
            seconds[stage] = trained.seconds
            save_checkpoint(model, folder / name)
    shutil.rmtree(folder / "run", ignore_errors=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return Demo(recipe, seconds)
