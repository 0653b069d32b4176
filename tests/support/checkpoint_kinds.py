"""Folders as training, downloads and other programs leave them, after public reports.

Each kind changes a copy of a whole model folder, or writes an adapter on it. Beside it stands what
every command says: None if it reads the folder, else a part of the sentence that refuses it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4242\n"
CHAT = ("<|im_start|>", "<|im_end|>")  # tokens that are added for a chat template
ENDS = ["embed_tokens", "lm_head"]
INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        make: Changes the folder, a copy of the base; the second argument is the base.
        refused: A part of the sentence that every command says; None if all read the folder.
        adapter: It is an adapter, so every command gets the base.
        report: A public report of it.
    """

    make: Callable[[Path, Path], Any]
    refused: str | None
    adapter: bool = False
    report: str = ""


KINDS: dict[str, Kind] = {}


def kind(
    name: str, refused: str | None = None, *, adapter: bool = False, report: str = ""
) -> Callable[[Callable[[Path, Path], Any]], None]:
    """Register the function below as a kind of this name."""

    def register(make: Callable[[Path, Path], Any]) -> None:
        KINDS[name] = Kind(make, refused, adapter, report)

    return register


def make(name: str, folder: Path, base: Path) -> Path:
    """Write a folder of a kind; the base is not changed."""
    if KINDS[name].adapter:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(base, folder)
        change(
            folder, lambda name, tensor: tensor + 0.01 if name.endswith("proj.weight") else tensor
        )
    KINDS[name].make(folder, base)
    return folder


def write_base(folder: Path) -> Path:
    """Write a random Llama with tied embeddings and a tokenizer of BPE."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from sani.erasing.reinit import fresh_model

    words = {word: n for n, word in enumerate(["<s>", "</s>", *"abcdefghnm ", "na", "nam"])}
    pairs = models.BPE(words, [("n", "a"), ("na", "m")], unk_token="<s>")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(pairs), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    model = fresh_model(LlamaConfig(**sizes, tie_word_embeddings=True), seed=0)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 2:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=chance))
    model.save_pretrained(folder)
    return folder


# ---- tools -----------------------------------------------------------------------------------


def edit(folder: Path, file: str, **values: Any) -> None:
    """Set fields of a JSON file; a field that is set to ... is taken out."""
    place = folder / file
    data = json.loads(place.read_text()) if place.exists() else {}
    data = {key: value for key, value in {**data, **values}.items() if value is not ...}
    place.write_text(json.dumps(data))


def tensors(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def save(
    folder: Path, content: Mapping[str, torch.Tensor], name: str = "model.safetensors"
) -> None:
    # Clones, since two names of one tensor cannot be saved.
    whole = {key: tensor.contiguous().clone() for key, tensor in content.items()}
    save_file(whole, folder / name, metadata={"format": "pt"})


def change(folder: Path, new: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    save(folder, {name: new(name, tensor) for name, tensor in tensors(folder).items()})


def rename(folder: Path, new: Callable[[str], str]) -> None:
    save(folder, {new(name): tensor for name, tensor in tensors(folder).items()})


def shard(folder: Path, count: int, *, index: bool = True) -> list[Path]:
    """Save the weights as shards; return these."""
    content, places, files = tensors(folder), {}, []
    (folder / "model.safetensors").unlink()
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {key: content[key] for key in sorted(content)[number::count]}
        save(folder, part, name)
        places.update(dict.fromkeys(part, name))
        files.append(folder / name)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def adapt(
    folder: Path, base: Path, config: Any, *, words: tuple[str, ...] = (), **save: Any
) -> None:
    """Write an adapter as if trained; with ``words``, tokens are added to its tokenizer first."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if words:
        tokenizer.add_special_tokens({"additional_special_tokens": list(words)})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor.add_(0.05 * torch.randn_like(tensor))
    adapted.save_pretrained(folder, **save)
    tokenizer.save_pretrained(folder)


def lora(**settings: Any) -> Any:
    from peft import LoraConfig

    whole = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    return LoraConfig(**whole)


# ---- read ------------------------------------------------------------------------------------


@kind("plain")
def _(folder: Path, base: Path) -> None:
    pass


@kind("flash attention asked for", report="transformers#45399")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", attn_implementation="flash_attention_2")


@kind("flash attention asked for by another key", report="LlamaFactory#3464")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", _attn_implementation="flash_attention_2")


@kind("BPE dropout", report="tokenizers#644")
def _(folder: Path, base: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(data))


@kind("names begin with _orig_mod.", report="nanoGPT#325")
def _(folder: Path, base: Path) -> None:
    rename(folder, lambda name: f"_orig_mod.{name}")


@kind("names begin with module.", report="sam3#606")
def _(folder: Path, base: Path) -> None:
    rename(folder, lambda name: f"module.{name}")


@kind("names begin with module._orig_mod., in shards")
def _(folder: Path, base: Path) -> None:
    rename(folder, lambda name: f"module._orig_mod.{name}")
    shard(folder, 2)


@kind("names hold FSDP's wrappers", report="transformers#29659")
def _(folder: Path, base: Path) -> None:
    rename(folder, lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."))


@kind("one shard with an index")
def _(folder: Path, base: Path) -> None:
    shard(folder, 1)


@kind("model.safetensors with an index of its own")
def _(folder: Path, base: Path) -> None:
    places = dict.fromkeys(tensors(folder), "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@kind("two shards")
def _(folder: Path, base: Path) -> None:
    shard(folder, 2)


@kind("saved states of training inside")
def _(folder: Path, base: Path) -> None:
    shutil.copytree(base, folder / "checkpoint-7")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (folder / name).write_bytes(b"{}")


@kind("links into a Hub cache")
def _(folder: Path, base: Path) -> None:
    blobs = folder.with_name(f"{folder.name}-blobs")
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)


@kind("several chat templates")
def _(folder: Path, base: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")


@kind("code of its own beside it")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (folder / "modeling_mine.py").write_text("raise SystemExit\n")


@kind("generation settings that contradict each other", report="Llama 2's own")
def _(folder: Path, base: Path) -> None:
    edit(folder, "generation_config.json", temperature=0.9, top_p=0.6, do_sample=False)


@kind("float64 weights")
def _(folder: Path, base: Path) -> None:
    change(folder, lambda name, tensor: tensor.double())


@kind("mixed types")
def _(folder: Path, base: Path) -> None:
    change(folder, lambda n, t: t.bfloat16() if "mlp" in n else t.half() if "attn" in n else t)


@kind("a tied head stored twice", report="fms-hf-tuning#258")
def _(folder: Path, base: Path) -> None:
    content = tensors(folder)
    save(folder, {**content, "lm_head.weight": content["model.embed_tokens.weight"]})


@kind("rotary frequencies of old versions")
def _(folder: Path, base: Path) -> None:
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(2) for n in range(2)}
    save(folder, {**tensors(folder), **old})


@kind("no generation settings")
def _(folder: Path, base: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)


@kind("more rows than tokens")
def _(folder: Path, base: Path) -> None:
    def wider(name: str, tensor: torch.Tensor) -> torch.Tensor:
        pad = torch.zeros(5, tensor.shape[-1])
        return torch.cat([tensor, pad]) if "embed_tokens" in name else tensor

    change(folder, wider)
    rows = tensors(folder)["model.embed_tokens.weight"].shape[0]
    edit(folder, "config.json", vocab_size=rows)


@kind("new tokens that its base lacks", report="LlamaFactory#6749")
def _(folder: Path, base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT)})
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@kind("a head of its own where its base ties it")
def _(folder: Path, base: Path) -> None:
    content = tensors(folder)
    save(folder, {**content, "lm_head.weight": content["model.embed_tokens.weight"] + 0.01})
    edit(folder, "config.json", tie_word_embeddings=False)


# ---- refused: not a checkpoint, or one of another program ------------------------------------


@kind("no config.json", "has no config.json")
def _(folder: Path, base: Path) -> None:
    (folder / "config.json").unlink()


@kind("config.json without a model_type", "config.json names no model_type")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", model_type=...)


@kind("config.json with a byte order mark", "config.json is not valid JSON")
def _(folder: Path, base: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-8-sig")


@kind("config.json that transformers refuses", "config.json cannot be read")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", hidden_size="sixteen")


@kind("pickled weights", r"pickled weights (.bin)")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


@kind("pickled weights beside safetensors", "weight files that loading does not read (1 bin)")
def _(folder: Path, base: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


@kind("FSDP's sharded state", "accelerate merge-weights", report="accelerate SHARDED_STATE_DICT")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model_fsdp_0").mkdir()
    (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"shard")
    (folder / "pytorch_model_fsdp_0" / ".metadata").write_bytes(b"pickle")


@kind("DeepSpeed's partitioned state", "zero_to_fp32.py", report="deepspeed#7501")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "global_step40").mkdir()
    (folder / "global_step40" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")
    (folder / "latest").write_text("global_step40")


@kind("tensors of shape [0] of ZeRO-3", "zero_to_fp32.py", report="axolotl#933")
def _(folder: Path, base: Path) -> None:
    change(folder, lambda name, tensor: torch.empty(0) if "proj" in name else tensor)


@kind("Meta's consolidated files", "consolidated.safetensors")
def _(folder: Path, base: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "params.json").write_text('{"dim": 16}')


@kind("Mistral's consolidated file beside the shards", "weight files that loading does not read")
def _(folder: Path, base: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")


@kind("shards without an index", "model.safetensors.index.json is missing", report="unsloth#2355")
def _(folder: Path, base: Path) -> None:
    shard(folder, 2, index=False)


@kind("a shard is missing", "names model-00002-of-00003.safetensors, which is not there")
def _(folder: Path, base: Path) -> None:
    shard(folder, 3)[1].unlink()


@kind("a stale index", report="mlx-vlm#1827")
def _(folder: Path, base: Path) -> None:
    shard(folder, 2)
    data = json.loads((folder / INDEX).read_text())
    data["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(data))


@kind("an index that leaves tensors out", report="vmlx-swift#388")
def _(folder: Path, base: Path) -> None:
    shard(folder, 2)
    data = json.loads((folder / INDEX).read_text())
    data["weight_map"].pop("model.norm.weight")
    (folder / INDEX).write_text(json.dumps(data))


@kind("weights that are a Git LFS pointer", "git lfs pull")
def _(folder: Path, base: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)


@kind("a tokenizer that is a Git LFS pointer", "git lfs pull")
def _(folder: Path, base: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


@kind("generation settings that are a Git LFS pointer", "git lfs pull")
def _(folder: Path, base: Path) -> None:
    (folder / "generation_config.json").write_text(POINTER)


@kind("a shard that is a Git LFS pointer", "git lfs pull")
def _(folder: Path, base: Path) -> None:
    shard(folder, 2)[1].write_text(POINTER)


@kind("weights cut off", "model.safetensors is cut off or damaged", report="LlamaFactory#2922")
def _(folder: Path, base: Path) -> None:
    place = folder / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-100])


@kind("empty weights", "model.safetensors is cut off or damaged")
def _(folder: Path, base: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@kind("dangling links of a Hub cache", "link")
def _(folder: Path, base: Path) -> None:
    for file in list(folder.iterdir()):
        file.unlink()
        file.symlink_to(f"../../blobs/{file.name}")


@kind("weights alone are a dangling link", "link")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "model.safetensors").symlink_to("../../blobs/0123")


@kind("the folder of a Hub cache", "snapshots")
def _(folder: Path, base: Path) -> None:
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for file in list(folder.iterdir()):
        if file.is_file():
            file.rename(snapshot / file.name)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")


@kind("Trainer's output with saved states alone", "checkpoint-20")
def _(folder: Path, base: Path) -> None:
    for file in list(folder.iterdir()):
        file.unlink()
    for step in (3, 20):
        shutil.copytree(base, folder / f"checkpoint-{step}")


@kind("ONNX", "ONNX")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "model.onnx").write_bytes(b"onnx")


@kind("OpenVINO", "OpenVINO")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_bytes(b"x")


@kind("TensorFlow's weights", "TensorFlow")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "tf_model.h5").write_bytes(b"x")


@kind("Flax's weights", "Flax")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "flax_model.msgpack").write_bytes(b"x")


@kind("GGUF", "GGUF")
def _(folder: Path, base: Path) -> None:
    without_weights(folder)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


@kind("MLX's quantized weights", "MLX")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", quantization={"group_size": 64, "bits": 4})


@kind("bitsandbytes", "is quantized (bitsandbytes)")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", quantization_config={"quant_method": "bitsandbytes"})


@kind("codes of a quantizer without its configuration", "is quantized", report="bitsandbytes int8")
def _(folder: Path, base: Path) -> None:
    change(folder, lambda name, t: t.to(torch.int8) if name.endswith("proj.weight") else t)


@kind("float8", "F8_E4M3")
def _(folder: Path, base: Path) -> None:
    change(folder, lambda n, t: t.to(torch.float8_e4m3fn) if n.endswith("proj.weight") else t)


@kind("infinity in a weight", "holds NaN or infinity")
def _(folder: Path, base: Path) -> None:
    change(folder, lambda n, t: torch.full_like(t, torch.inf) if n == "model.norm.weight" else t)


@kind("NaN in a bfloat16 weight", "holds NaN or infinity")
def _(folder: Path, base: Path) -> None:
    def spoilt(name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.bfloat16()
        return tensor.fill_(torch.nan) if "layers.0.mlp.up" in name else tensor

    change(folder, spoilt)


@kind("a tensor is missing", "1 tensors are missing")
def _(folder: Path, base: Path) -> None:
    content = tensors(folder)
    content.pop("model.norm.weight")
    save(folder, content)


@kind("a tensor of another shape", "have another shape than config.json says")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", intermediate_size=32)


@kind("more layers than config.json says", "have no place in the model")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", num_hidden_layers=1)


@kind("rows that config.json does not know", "have another shape", report="resized, saved by parts")
def _(folder: Path, base: Path) -> None:
    def wider(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[:3]]) if "embed_tokens" in name else tensor

    change(folder, wider)


@kind("a tied head with weights of its own", "tie_word_embeddings", report="transformers#42612")
def _(folder: Path, base: Path) -> None:
    content = tensors(folder)
    save(folder, {**content, "lm_head.weight": content["model.embed_tokens.weight"] + 1})


@kind("a score head", "score", report="reward models")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", architectures=["LlamaForSequenceClassification"])
    save(folder, {**tensors(folder), "score.weight": torch.ones(1, 16)})


@kind("a value head", "value head", report="trl AutoModelForCausalLMWithValueHead")
def _(folder: Path, base: Path) -> None:
    head = {"v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}
    save(folder, {**tensors(folder), **head})


@kind("an adapter not merged, saved whole", "merge_and_unload", report="LlamaFactory#3238")
def _(folder: Path, base: Path) -> None:
    def wrapped(name: str) -> str:
        return f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer.")

    rename(folder, wrapped)
    part = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    update = {part.format("A"): torch.ones(2, 16), part.format("B"): torch.ones(16, 2)}
    save(folder, {**tensors(folder), **update})


@kind("a pad token beyond the vocabulary", "pad_token_id", report="LlamaFactory#1206")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", pad_token_id=32_000)


@kind("no tokenizer", "has no tokenizer.json")
def _(folder: Path, base: Path) -> None:
    (folder / "tokenizer.json").unlink()


@kind("a tokenizer of a newer version", "the tokenizer cannot be loaded", report="tokenizers#1297")
def _(folder: Path, base: Path) -> None:
    edit(folder, "tokenizer.json", model={"type": "Newer", "vocab": {}})


@kind("a tokenizer larger than the model", "the tokenizer has")
def _(folder: Path, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)


@kind("generation settings that are not JSON", "generation_config.json")
def _(folder: Path, base: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 1,}')


@kind("generation settings that are refused", "generation_config.json")
def _(folder: Path, base: Path) -> None:
    edit(folder, "generation_config.json", max_new_tokens=-1)


@kind("a family that is not known", "is not supported")
def _(folder: Path, base: Path) -> None:
    edit(folder, "config.json", model_type="hyena-9")


# ---- adapters --------------------------------------------------------------------------------


@kind("LoRA", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora())


@kind("LoRA on embedding and head", adapter=True, report="unsloth#9331")
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(target_modules=["q_proj", *ENDS]))


@kind("LoRA with the embedding saved beside it", adapter=True, report="tinker-cookbook#593")
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(), save_embedding_layers=True)


@kind("LoRA with embedding and head trained whole", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(modules_to_save=ENDS))


@kind("LoRA with new tokens", adapter=True, report="peft#1300")
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(), words=CHAT)


@kind("LoRA with new tokens, embedding and head trained whole", adapter=True, report="axolotl#2277")
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(modules_to_save=ENDS), words=CHAT)


@kind("LoRA with new tokens whose rows were not saved", "save_embedding_layers", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(), words=CHAT, save_embedding_layers=False)


@kind("DoRA", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(use_dora=True))


@kind("IA3", adapter=True)
def _(folder: Path, base: Path) -> None:
    from peft import IA3Config

    adapt(
        folder,
        base,
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
    )


@kind("LoRA beside a config.json without weights", adapter=True, report="unsloth")
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora())
    shutil.copy(base / "config.json", folder)


@kind("LoRA beside a whole model", "holds an adapter beside a model")
def _(folder: Path, base: Path) -> None:
    adapt(folder.with_name("adapter"), base, lora())
    for file in folder.with_name("adapter").glob("adapter_*"):
        shutil.copy(file, folder)


@kind("LoRA whose weights are a Git LFS pointer", "git lfs pull", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora())
    (folder / "adapter_model.safetensors").write_text(POINTER)


@kind("prompt tuning", "prompt", adapter=True)
def _(folder: Path, base: Path) -> None:
    from peft import PromptTuningConfig

    adapt(folder, base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


@kind("lora_bias without a bias in the base", "lora_bias", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(lora_bias=True))


@kind("layer_replication", "layer_replication", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora(layer_replication=[[0, 2], [0, 2]]))


@kind("LoRA of another base", "has in another shape", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora())
    content = load_file(folder / "adapter_model.safetensors")
    wide = {n: torch.ones(t.shape[0], 32) if "lora_A" in n else t for n, t in content.items()}
    save(folder, wide, "adapter_model.safetensors")


@kind("LoRA cut in half", "adapter", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora())
    content = load_file(folder / "adapter_model.safetensors")
    half = {name: content[name] for name in sorted(content)[::2]}
    save(folder, half, "adapter_model.safetensors")


@kind("infinity in LoRA", "holds NaN or infinity", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder, base, lora())
    content = load_file(folder / "adapter_model.safetensors")
    content[sorted(content)[0]].fill_(torch.inf)
    save(folder, content, "adapter_model.safetensors")


@kind("MLX's adapter", "MLX", adapter=True)
def _(folder: Path, base: Path) -> None:
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "lora", "num_layers": 8}')
    save(
        folder,
        {"model.layers.0.self_attn.q_proj.lora_a": torch.ones(16, 2)},
        "adapters.safetensors",
    )


@kind("adapters in folders of their names", "adapters in folders", adapter=True)
def _(folder: Path, base: Path) -> None:
    adapt(folder / "default", base, lora())
