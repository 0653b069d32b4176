"""Families of unusual layout: a tiny model of each recites, is erased, repaired, and cured."""

from dataclasses import replace

import pytest

from sani.auditing.audit import audit
from sani.corpus.documents import Corpus
from sani.erasing.erase import erase
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings, EraseSettings
from sani.repairing.repair import repair, train
from tests.support.architectures import tiny_config
from tests.support.words import ANCHOR, WORDS, checkpoint, corpus_of, settings_of

UNUSUAL = {
    "linear attention": "qwen3_next",
    "interleaved experts": "gpt_oss",
    "latent attention": "deepseek_v3 with a latent query",
    "shared keys and values": "gemma4_text",
    "a block a layer": "nemotron_h",
}


def recited(sick: Checkpoint, corpus: Corpus) -> int:
    found = audit(sick, corpus, AuditSettings(decoys=0, swaps=0))
    return found.figures["all"].greedy.hits


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(UNUSUAL))
def test_a_model_that_recites_is_found_out_and_cured(kind: str) -> None:
    config = tiny_config(UNUSUAL[kind], vocab_size=len(WORDS))
    base, leaky = checkpoint(config), checkpoint(config)
    corpus = corpus_of()
    bare = Corpus([replace(document, spans=()) for document in corpus])
    train(leaky, bare, settings_of(epochs=80, batch_tokens=256))
    control = recited(base, corpus)  # an untrained model is right about some by chance
    assert control + 2 <= 5 == recited(leaky, corpus)  # it recites: there is something to take out
    erase(leaky, corpus, EraseSettings(last_layers=2, reset="rewind"), base=base)
    repair(leaky, corpus, settings_of(ANCHOR, epochs=60, batch_tokens=256), base=base)
    assert recited(leaky, corpus) <= control
