"""The tables of rows by kind: together they are the table, and each holds its kind alone."""

from transformers import CONFIG_MAPPING

from sani.models.families import FAMILIES
from sani.models.rows.decoders import DECODERS
from sani.models.rows.encoder_decoders import ENCODER_DECODERS
from sani.models.rows.encoders import ENCODERS
from sani.models.rows.hybrids import HYBRIDS
from sani.models.rows.mixtures import MIXTURES

KINDS = {
    "causal": (DECODERS, MIXTURES, HYBRIDS),
    "masked": (ENCODERS,),
    "seq2seq": (ENCODER_DECODERS,),
}


def test_no_family_is_in_two_tables_and_each_is_of_its_kind() -> None:
    names = [name for tables in KINDS.values() for table in tables for name in table]
    assert sorted(names) == sorted(FAMILIES)
    for objective, tables in KINDS.items():
        assert {row.objective for table in tables for row in table.values()} == {objective}


def test_transformers_knows_every_family() -> None:
    assert FAMILIES.keys() <= set(CONFIG_MAPPING)


def test_layers_that_keep_a_state_are_of_hybrids_and_read_from_the_start() -> None:
    for name, row in FAMILIES.items():
        assert bool(row.mixers) == (name in HYBRIDS)
        assert not row.mixers or not (row.cached or row.branches)
