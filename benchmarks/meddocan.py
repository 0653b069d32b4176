"""Make the MEDDOCAN models that the recipes and the README speak of: a base, and one that leaks.

    python benchmarks/meddocan.py [--corpora DIR] [--out runs/meddocan] [--documents 60]

The base is trained on public text: part of MEDDOCAN's test split (other patients than those of
the train split) and English notes of mtsamples. The leaky model is the base, fine-tuned on the
first 60 cases of the train split until it recites them. Held back for utility: 50 cases of the
test split. Takes at most 20 minutes on two cores. Then: sani run recipes/meddocan.yaml
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

HELD_OUT = 50
MTSAMPLES = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("SANI_CORPORA", "../shared/data")
    parser.add_argument("--corpora", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=Path("runs/meddocan"))
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--base-epochs", type=int, default=5)
    parser.add_argument("--leaky-epochs", type=int, default=42)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from sani.checkpoint import save_checkpoint
    from sani.corpus.readers import read_corpus
    from sani.demo import new_model, train_on_text, write_jsonl
    from sani.runtime import quiet_libraries

    quiet_libraries()
    started = time.perf_counter()
    test = read_corpus(arguments.corpora / "meddocan/test.jsonl")
    private = read_corpus(arguments.corpora / "meddocan/train.jsonl", limit=arguments.documents)
    english = read_corpus(arguments.corpora / "mtsamples/train.jsonl", limit=MTSAMPLES)
    public = [document.text for document in [*test[HELD_OUT:], *english]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(test[:HELD_OUT], arguments.out / "held_out.jsonl")

    model = new_model(
        public,
        vocab_size=4096,
        layers=6,
        hidden=128,
        context=1024,
        folder=arguments.out / "base",
        seed=arguments.seed,
    )
    train_on_text(
        model, public, epochs=arguments.base_epochs, seed=arguments.seed, on_step=_say("base")
    )
    save_checkpoint(model, arguments.out / "base")
    train_on_text(
        model,
        [document.text for document in private],
        epochs=arguments.leaky_epochs,
        seed=arguments.seed,
        on_step=_say("leaky"),
    )
    save_checkpoint(model, arguments.out / "leaky")
    print(f"{arguments.out}: base/, leaky/, held_out.jsonl; {time.perf_counter() - started:.0f} s")


def _say(what: str):
    def on_step(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            print(f"{what}: step {done} of {total}", flush=True)

    return on_step


if __name__ == "__main__":
    main()
