"""GGUF in: a file in llama.cpp's layout becomes a plain checkpoint that computes the same."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from sani.cli.main import main
from sani.corpus.tables import write_jsonl
from sani.demo.demo import new_model
from sani.errors import CheckpointError
from sani.models import building
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.models.dequantize import dequantize
from tests.support.clinic import Clinic

TEXTS = ["the ward saw Ana Lima on 3 May", "she was well, and went home again", "no fever"] * 3
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Q8 = gguf.GGMLQuantizationType.Q8_0
F16 = gguf.GGMLQuantizationType.F16


def name_there(name: str) -> str:
    """Return the name that llama.cpp gives a tensor."""
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        number, _, part = module.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows as llama.cpp's converter orders those of queries and keys of a Llama."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    loaded: Checkpoint, file: Path, *, type_: Any = F16, more: Sequence[str] = ()
) -> None:
    """Write a model as llama.cpp's converter does: matrices in ``type_``, vectors in float32."""
    config: Any = loaded.model.config
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if "sliding" in more:
        writer.add_sliding_window(8)
    add_tokenizer(writer, loaded.tokenizer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in loaded.model.named_parameters():
        array = tensor.detach().numpy()
        count = next((n for part, n in heads.items() if part in name), None)
        if count is not None and config.model_type == "llama":
            array = permuted(array, count)
        if array.ndim == 1:
            writer.add_tensor(name_there(name), array)
            continue
        kind = type_ if array.shape[1] % 32 == 0 else F16  # as llama.cpp falls back
        packed = gguf.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(name_there(name), packed, raw_dtype=kind)
    if "rope" in more:
        writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokenizer: Any) -> None:
    """Write a byte-level BPE tokenizer, as of GPT-2."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    special = {each["content"] for each in content["added_tokens"]}
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([kinds[word not in special] for word in words])
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


@pytest.fixture
def llama(tmp_path: Path) -> Checkpoint:
    """A random Llama in which every number counts."""
    folder = tmp_path
    tokenizer = new_model(
        TEXTS, vocab_size=300, layers=1, hidden=32, context=64, folder=folder / "words", seed=0
    ).tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(1)
    model = building.new_model(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = 0.3 * torch.randn(tensor.shape)
            tensor.copy_(1 + noise if "norm" in name else noise)
    path = folder / "source"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return load_checkpoint(path)


def logits(loaded: Checkpoint) -> torch.Tensor:
    ids = torch.arange(40)[None] % loaded.model.config.vocab_size
    with torch.no_grad():
        return torch.as_tensor(loaded.model(input_ids=ids).logits)


@pytest.mark.parametrize(("type_", "tolerance"), [(F16, 0.02), (Q8, 0.2)])
def test_the_checkpoint_computes_what_the_file_does(
    llama: Checkpoint, tmp_path: Path, type_: Any, tolerance: float
) -> None:
    source = llama
    (tmp_path / "gguf").mkdir()
    write_gguf(source, tmp_path / "gguf" / "model.gguf", type_=type_)
    result = dequantize(tmp_path / "gguf", tmp_path / "plain")
    plain = load_checkpoint(tmp_path / "plain")
    assert {file.name for file in (tmp_path / "plain").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    expected = logits(source)
    assert (logits(plain) - expected).abs().max() < tolerance * expected.abs().max()
    # Each number is the one in the file, to the bit: quantized here once more.
    weights = dict(source.model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            if tensor.ndim == 2:
                array = gguf.dequantize(gguf.quantize(tensor.numpy(), type_), type_)
                tensor.copy_(torch.from_numpy(array))
            assert torch.equal(plain.model.get_parameter(name), tensor), name
    torch.testing.assert_close(logits(plain), logits(source), rtol=0, atol=1e-5)
    assert result.model_type == source.model.config.model_type
    assert result.types[type_.name] == sum(t.ndim == 2 for t in weights.values())
    assert result.parameters == sum(tensor.numel() for tensor in weights.values())
    assert result.tokenizer == "gguf"
    for text in (*TEXTS, "Ünïcode, 12/05/1987"):
        ids = [loaded.tokenizer(text, add_special_tokens=False).input_ids for loaded in
               (source, plain)]  # fmt: skip
        assert ids[0] == ids[1]
    saved = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not saved.get("quantization_config")


def test_files_beside_go_before_what_the_file_says(llama: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(llama, folder / "m.gguf", more=["rope", "sliding"])
    with pytest.raises(CheckpointError, match=r"does not read 'rope_freqs.weight', which stretch"):
        dequantize(folder, tmp_path / "plain")
    config = json.loads((llama.path / "config.json").read_text())
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": stretched}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama.path / name, folder)
    assert dequantize(folder, tmp_path / "plain").tokenizer == "files"
    plain = load_checkpoint(tmp_path / "plain")
    assert plain.model.config.rope_parameters["factor"] == 2.0
    assert (logits(plain) - logits(llama)).abs().max() > 0.1
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"tensors of a llama are not in it"):
        dequantize(folder, tmp_path / "other")
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"numbers, and transformers reads"):
        dequantize(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_setting_that_is_not_read_is_refused(llama: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    write_gguf(llama, tmp_path / "gguf" / "m.gguf", more=["sliding"])
    with pytest.raises(CheckpointError, match=r"read its setting 'attention.sliding_window'"):
        dequantize(tmp_path / "gguf", tmp_path / "plain")


def test_folders_without_one_whole_gguf_file_are_refused(llama: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    with pytest.raises(CheckpointError, match="does not exist"):
        dequantize(folder, tmp_path / "plain")
    folder.mkdir()
    with pytest.raises(CheckpointError, match="expected a GGUF file, found none"):
        dequantize(folder, tmp_path / "plain")
    (folder / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        dequantize(folder, tmp_path / "plain")
    (folder / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        dequantize(folder, tmp_path / "plain")
    (folder / "b.gguf").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="weight files that loading does not read"):
        dequantize(folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_the_commands_name_the_way_and_audit_what_it_writes(
    leaky_folder: Path, clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that recites recites as much from its dequantized file."""
    folder, plain, notes = tmp_path / "gguf", tmp_path / "plain", tmp_path / "notes.jsonl"
    folder.mkdir()
    write_gguf(load_checkpoint(leaky_folder), folder / "model-Q8_0.gguf", type_=Q8)
    write_jsonl(clinic.private, notes)
    audit = ["--corpus", str(notes), "--decoys", "0", "--json"]
    assert main(["audit", str(folder), *audit]) == 1
    said = capsys.readouterr().err
    assert f"sani dequantize {folder} --out OUT" in said
    assert main(["dequantize", str(folder), "--out", str(plain)]) == 0
    said = capsys.readouterr().out
    assert f"Checkpoint: {plain}" in said
    assert "Q8_0" in said
    rates = []
    for each in (leaky_folder, plain):
        assert main(["audit", str(each), *audit]) == 0
        figures = json.loads(capsys.readouterr().out)["audits"]["model"]["figures"]
        rates.append(figures["direct"]["greedy"]["value"])
    assert rates[0] > 0.5
    assert rates[1] == pytest.approx(rates[0], abs=0.1)
    save_checkpoint(load_checkpoint(plain), tmp_path / "again")
