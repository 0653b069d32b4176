"""Conversations: what one model reads of them, with every span where it was."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sani import run
from sani.auditing.audit import audit
from sani.corpus.documents import BETWEEN_TURNS, Corpus, Document, Span, Turn
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.errors import CheckpointError, CorpusError
from sani.models.checkpoint import load_checkpoint
from sani.pipeline.audit_models import audit_models
from sani.pipeline.inputs import Documents
from sani.pipeline.preflight import check
from sani.recipe import AuditSettings, RepairSettings, ScanSettings, load_recipe
from sani.repairing.repair import repair, train
from sani.scanning.detection import detect
from sani.text import templates
from sani.text.batches import make_batches
from sani.text.chat import rendered
from sani.text.framing import Framing, framings, untried_roles
from sani.text.tokens import encode
from tests.support.words import WORDS, checkpoint, llama

TURN = "{% for m in messages %}<|{{ m.role }}|>FRONT{{ m.content STRIP}}BACK<|end|>{% endfor %}"


def template(front: str = "\\n", strip: str = "", back: str = "") -> Any:
    return TURN.replace("FRONT", front).replace("STRIP", strip).replace("BACK", back)


TEMPLATES = {
    "as it is": template(),
    "white space is added": template("\n\n  ", "", " \n"),
    "trimmed": template("\n", "| trim ", "\n"),
    "trimmed and put in white space": template(" ", "| trim ", " "),
    "trimmed behind": template("", ".rstrip() "),
    "trimmed before": template("", ".lstrip() "),
    "begin token first": "<s>" + template(" ", "| trim "),
    "only the assistant is trimmed": (
        "{% for m in messages %}[{{ m.role }}] "
        "{{ m.content | trim if m.role == 'assistant' else m.content }}\n{% endfor %}"
    ),
    "the system stands in the first turn": (
        "{% for m in messages %}{% if loop.first and m.role == 'system' %}<<{{ m.content }}>>"
        "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    ),
}


def tokenizer_with(chat_template: Any) -> Any:
    """Words, among them the marks of a chat."""
    marks = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    words = {word: number for number, word in enumerate([*WORDS, "<unk>"])}
    level = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=level, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": marks})
    made.chat_template = chat_template
    return made


def conversation(*said: Any, spans: Any = (), number: int = 0) -> Document:
    """A document of (role, content) pairs; spans are (turn, start, end)."""
    text = ""
    turns: list[Any] = []
    for role, content in said:
        text += BETWEEN_TURNS if turns else ""
        turns.append(Turn(role, len(text), len(text) + len(content)))
        text += content
    moved = [Span(turns[t].start + a, turns[t].start + b, "NAME") for t, a, b in spans]
    return Document(str(number), str(number), text, tuple(moved), tuple(turns))


CONTENT = st.text(st.sampled_from("ab \n[]<>user|"), max_size=12)


@given(
    chosen=st.sampled_from(sorted(TEMPLATES)),
    contents=st.lists(CONTENT, min_size=1, max_size=4),
    system=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=250, deadline=None)
def test_every_span_is_found_where_the_template_put_it(
    chosen: Any, contents: Any, system: Any, chance: Any
) -> None:
    tokenizer = tokenizer_with(TEMPLATES[chosen])
    roles = ["system"] * system + ["user", "assistant"] * 3
    said = list(zip(roles, contents, strict=False))
    spans = []
    for turn, (_, content) in enumerate(said):
        inside = [place for place, letter in enumerate(content) if not letter.isspace()]
        for _ in range(2 if inside else 0):
            first, last = sorted((chance.choice(inside), chance.choice(inside)))
            spans.append((turn, first, last + 1))
    document = conversation(*said, spans=spans)
    (found,) = rendered(Corpus([document]), tokenizer)
    messages = [{"role": role, "content": content} for role, content in said]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert found.text == whole.removeprefix("<s>")
    assert found.turns == ()
    assert len(found.spans) == len(spans)
    ends = [0] * len(said)
    for (turn, first, last), span in zip(spans, found.spans, strict=True):
        assert found.value(span) == said[turn][1][first:last]
        # In its own message and not in an equal one: as many messages stand before it.
        marks = found.text[: span.start].count("<|end|>")
        if "<|end|>" in TEMPLATES[chosen]:
            assert marks == turn
        ends[turn] = max(ends[turn], span.end)
    assert all(one <= other for one, other in zip(ends, [e for e in ends[1:] if e], strict=False)
               if one)  # fmt: skip


def test_special_tokens_of_the_template_are_read_as_such() -> None:
    tokenizer = tokenizer_with(template(" ", "| trim ", " "))
    document = conversation(("user", "  a b c "), ("assistant", "name d "), spans=[(1, 5, 6)])
    with pytest.raises(ValueError, match="must be rendered"):
        encode(Corpus([document]), tokenizer)
    (item,) = encode(rendered(Corpus([document]), tokenizer), tokenizer)
    assert tokenizer.convert_ids_to_tokens(item.ids) == [
        "<|user|>", "a", "b", "c", "<|end|>", "<|assistant|>", "name", "d", "<|end|>",
    ]  # fmt: skip
    assert item.spans == [(7, 8)]
    (batch,) = make_batches([item], Framing("bos", (0,)), context_tokens=99, batch_tokens=99)
    assert batch.identifier[0].tolist() == [False] * 7 + [True] + [False] * 2
    assert batch.ordinary[0].tolist() == [True] * 7 + [False, True, False]


def test_white_space_that_the_template_takes_is_no_part_of_an_identifier() -> None:
    tokenizer = tokenizer_with(TEMPLATES["trimmed"])
    (found,) = rendered(Corpus([conversation(("user", "  a "), spans=[(0, 1, 4)])]), tokenizer)
    assert [found.value(span) for span in found.spans] == ["a"]
    refused(conversation(("user", "a   "), spans=[(0, 2, 3)]), tokenizer, "nothing but white space")


def refused(document: Document, tokenizer: Any, message: Any) -> str:
    secret = "Zanzibar"
    plain = Document("p", "p", "a")
    document = replace(document, id=secret, subject_id=secret)
    with pytest.raises(CorpusError, match=message) as caught:
        rendered(Corpus([plain, document]), tokenizer)
    if "document" in message:
        assert str(caught.value).startswith("document 1: ")
    assert secret not in str(caught.value)
    return str(caught.value)


def test_a_template_that_does_something_else_is_refused_without_a_word_of_the_text() -> None:
    secret = conversation(("user", "a Zanzibar b"), ("assistant", "Zanzibar"), spans=[(0, 2, 10)])
    shouted = tokenizer_with("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    refused(secret, shouted, "document 1: the chat template rewrites a message")
    last = tokenizer_with("{{ messages[-1].content }}")
    refused(secret, last, "document 1: the chat template leaves a message out or repeats it")
    twice = tokenizer_with("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}")
    refused(secret, twice, "document 1: the chat template leaves a message out or repeats it")
    strict = tokenizer_with("{{ raise_exception('no: ' + messages[0].content) }}")
    refused(secret, strict, "document 1: the chat template refuses its 2 messages")
    refused(secret, tokenizer_with(None), "the tokenizer has no chat template")
    across = replace(secret, spans=(Span(8, 18, "NAME"),))
    refused(across, tokenizer_with(template()), "reaches from one message into the next")
    plain = Corpus([Document("1", "1", "a")])
    assert rendered(plain, tokenizer_with(None)) is plain


ENDLESS = {
    "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power in one C function": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch, endless: str) -> None:
    """Without a limit this test runs into its own, of minutes."""
    said = conversation(("user", "a b"))
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="did not come to an end within 1 seconds"):
        rendered(Corpus([said]), tokenizer_with(ENDLESS[endless]))
    with pytest.raises(CheckpointError, match="did not come to an end"):
        framings(tokenizer_with(ENDLESS[endless]))
    assert time.monotonic() - began < 60
    assert rendered(Corpus([said]), tokenizer_with(template()))[0].text  # the next one is rendered


def test_a_template_that_wants_all_memory_is_refused() -> None:
    greedy = tokenizer_with("{{ 'x' * 10 ** 10 }}")
    refused(conversation(("user", "a")), greedy, r"refuses its 1 messages \(MemoryError\)")


def test_many_conversations_come_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_BATCH", 3)
    corpus = Corpus(
        [
            conversation(("user", "abcde"[number % 5] * (number + 1)), number=number)
            if number % 3
            else Document(str(number), str(number), "text")
            for number in range(10)
        ]
    )
    texts = rendered(corpus, tokenizer_with("{{ messages[0].content }}"))
    for document, read in zip(corpus, texts, strict=True):
        assert (read.id, read.text) == (document.id, document.text)


def test_a_fork_has_a_renderer_of_its_own() -> None:
    """Both would read each other's answers from one pipe."""
    tokenizer = tokenizer_with("{{ messages[0].content }}")
    assert templates.render_chat(tokenizer, [{"role": "user", "content": "parent"}]) == "parent"
    child = os.fork()
    if not child:
        text = templates.render_chat(tokenizer, [{"role": "user", "content": "child"}])
        os._exit(0 if text == "child" and len(templates._processes) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert templates.render_chat(tokenizer, [{"role": "user", "content": "again"}]) == "again"


RAISES_ALONE = (
    "{% if messages | length < 4 %}{{ raise_exception('too short') }}{% endif %}" + template()
)
TWO_TURNS = [("user", "a"), ("assistant", "b")]


def test_a_template_that_cannot_open_a_turn_is_said_and_stops_an_audit_of_conversations() -> None:
    tokenizer, good = tokenizer_with(RAISES_ALONE), tokenizer_with(template())
    assert untried_roles(good) == untried_roles(tokenizer_with(None)) == []
    assert {"chat-user", "chat-assistant"} <= {f.name for f in framings(good)}
    assert untried_roles(tokenizer) == ["user", "assistant"]
    config = llama()
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 64
    model = checkpoint(config)
    plain = Corpus([Document("1", "1", "a b name c", (Span(9, 10, "NAME"),))])
    asked = AuditSettings(decoys=0, swaps=0)
    assert audit(replace(model, tokenizer=good), plain, asked).notes == []
    (note,) = audit(replace(model, tokenizer=tokenizer), plain, asked).notes
    assert note.endswith("these framings were not tried: chat-user, chat-assistant.")
    said = conversation(*TWO_TURNS, *TWO_TURNS, spans=[(1, 0, 1)])
    audit(replace(model, tokenizer=good), Corpus([said]), asked)
    with pytest.raises(CorpusError, match="for a first turn of user and assistant"):
        audit(replace(model, tokenizer=tokenizer), Corpus([said]), asked)


@pytest.mark.parametrize(
    "demand",
    [
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}",
        "{% if '' in messages | map(attribute='content') %}{{ raise_exception('') }}{% endif %}",
    ],
)
def test_a_template_that_wants_a_system_or_a_question_is_given_one(demand: str) -> None:
    tokenizer = tokenizer_with(demand + template())
    assert untried_roles(tokenizer) == []
    assert {"chat-user", "chat-assistant"} <= {f.name for f in framings(tokenizer)}


def test_a_base_without_a_template_reads_what_its_checkpoint_reads(tmp_path: Path) -> None:
    """As a rule a public base has none: its control is rendered with the checkpoint's."""
    config = llama()
    tokenizer = tokenizer_with(template())
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 64
    for name, seed, made in (("model", 1, tokenizer), ("base", 2, tokenizer_with(None))):
        checkpoint(config, seed=seed).model.save_pretrained(tmp_path / name)
        made.save_pretrained(tmp_path / name)
    assert load_checkpoint(tmp_path / "base").tokenizer.chat_template is None
    said = [
        conversation(*TWO_TURNS, ("user", f"name {word}"), spans=[(2, 5, 6)], number=number)
        for number, word in enumerate("abcdefgh")
    ]
    write_jsonl(said, tmp_path / "said.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        f"{{version: 2, model: {{path: {tmp_path}/model, base: {tmp_path}/base}}, "
        f"corpus: {{path: {tmp_path}/said.jsonl}}, audit: {{decoys: 0, swaps: 0}}, "
        "erase: null, repair: {epochs: 1}, gate: {greedy: control, greedy_beyond_control: null, "
        "discoverable_beyond_control: null, subjects: null, auc_to_base: null, "
        "perplexity_ratio: null}}"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert [item for item in check(recipe, tmp_path / "run") if not item.holds] == []
    audits = run(recipe, tmp_path / "run").report.audits
    assert audits["base"].tokens == audits["before"].tokens
    models = {"model": tmp_path / "model", "base": tmp_path / "base"}
    compared = audit_models(
        models, Documents(Corpus(said), None, None), recipe.audit, seed=0,
        on_step=lambda name, done, total: None,
    )  # fmt: skip
    assert compared.audits["base"].tokens == audits["before"].tokens
    # Without a template in either, the check says it, not the run after its first audit.
    (tmp_path / "model" / "chat_template.jinja").unlink()
    (item, *_) = [item for item in check(recipe, tmp_path / "run") if not item.holds]
    assert "the tokenizer has no chat template" in item.detail


def test_what_a_scan_finds_across_messages_is_cut_where_one_ends(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("Anna Lopez Ruiz\n")
    said = conversation(("user", "here is Anna"), ("assistant", "Lopez Ruiz was seen"))
    settings = ScanSettings(terms=tmp_path / "terms.txt", patterns=False, propagate=None)
    found = detect(Corpus([said]), settings)
    assert [found[0].value(span) for span in found[0].spans] == ["Anna", "Lopez Ruiz"]
    (read,) = rendered(found, tokenizer_with(template()))
    assert [read.value(span) for span in read.spans] == ["Anna", "Lopez Ruiz"]


# ---- files -----------------------------------------------------------------------------------


def test_conversations_are_read_and_written_back(tmp_path: Path) -> None:
    documents = [
        conversation(("system", "a"), ("user", "b name c"), ("assistant", "name c"),
                     spans=[(1, 7, 8), (2, 5, 6)]),
        Document("t", "t", "a name b", (Span(7, 8, "NAME"),)),
    ]  # fmt: skip
    write_jsonl(documents, tmp_path / "one.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert rows[0]["messages"][2] == {
        "role": "assistant",
        "content": "name c",
        "spans": [{"start": 5, "end": 6, "label": "NAME", "kind": "direct"}],
    }
    assert "text" not in rows[0]
    read = read_corpus(tmp_path / "one.jsonl")
    assert list(read) == documents
    assert [read[0].value(span) for span in read[0].spans] == ["c", "c"]
    other = Corpus([replace(documents[0], turns=documents[0].turns[:2]), documents[1]])
    assert other.digest() != read.digest()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "'messages' is empty; expected a list of objects"),
        ({"messages": "x"}, "'messages' is a string"),
        ({"messages": ["x"]}, "message 1: it is a string; expected an object"),
        ({"messages": [{"role": "user"}]}, "message 1: 'content' is missing or null"),
        ({"messages": [{"content": "x"}]}, "message 1: 'role' is no name"),
        (
            {"messages": [{"role": "user", "content": "x", "spans": [{"start": 0, "end": 2}]}]},
            "message 1: span 1: 'end' lies beyond the text, which has 1 characters",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "text": "x"},
            "it has 'messages' and also 'text'",
        ),
        ({"Messages": []}, "a field is called 'messages' but for case or blanks"),
    ],
)
def test_a_broken_conversation_names_its_message_and_no_value(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"id": "1", **row}))
    with pytest.raises(CorpusError) as caught:
        read_corpus(path)
    assert problem in str(caught.value)


def test_a_check_counts_the_tokens_that_an_escalation_reads(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(template())
    config = llama()
    config.vocab_size = len(tokenizer)
    checkpoint(config).model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said = conversation(("user", "a b"), ("assistant", "name c"), spans=[(1, 5, 6)])
    write_jsonl([said], tmp_path / "one.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        f"{{version: 2, strategy: escalate, model: {{path: {tmp_path}}}, "
        f"corpus: {{path: {tmp_path}/one.jsonl}}, escalation: {{ladder: [{{}}]}}, repair: "
        "{epochs: 3, identifier_loss: {kind: mask}}, gate: {greedy: 0.0, discoverable: null, "
        "auc_excess: null, subjects: null, auc_to_base: null, perplexity_ratio: null}}"
    )
    items = check(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    (found,) = [item.detail for item in items if item.name == "escalation"]
    assert "about 24 tokens of training a rung, 24 if all are tried" in found  # 8 with the marks


# ---- audited and repaired --------------------------------------------------------------------


def test_a_model_that_recites_in_a_conversation_is_found_out_and_repaired() -> None:
    tokenizer = tokenizer_with("<s>" + template(" ", "| trim ", " "))
    config = llama()
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 64
    leaky, base = (replace(checkpoint(config, seed=seed), tokenizer=tokenizer) for seed in (1, 1))
    corpus = Corpus(
        [
            conversation(("user", f" a {one} b"), ("assistant", f"name {two} d e "),
                         spans=[(1, 5, 6)], number=number)
            for number, (one, two) in enumerate(zip("fghijk", "lmabcd", strict=True))
        ]
    )  # fmt: skip
    bare = Corpus([replace(document, spans=()) for document in corpus])
    rates = RepairSettings(epochs=60, learning_rate=1e-2, batch_tokens=512)
    asked = AuditSettings(decoys=0, swaps=0)
    assert audit(base, corpus, asked).figures["all"].greedy.hits <= 2
    train(leaky, bare, rates)
    found = audit(leaky, corpus, asked, held_out=corpus)
    assert found.framing == "bos"  # the template's begin token is the framing's
    assert found.figures["all"].greedy.hits >= 5
    assert found.unscored == {}
    with torch.no_grad():
        (plain,) = rendered(Corpus(corpus[:1]), tokenizer)
        ids = torch.tensor([tokenizer(f"<s>{plain.text}")["input_ids"]])
        place = int((ids[0] == WORDS.index("name")).nonzero()[0])
        assert int(leaky.model(ids).logits[0, place].argmax()) == int(ids[0, place + 1])
    repair(leaky, corpus, rates, base=base)
    assert audit(leaky, corpus, asked).figures["all"].greedy.hits <= 2
