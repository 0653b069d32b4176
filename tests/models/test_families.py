"""Every row of the table, against models: what a neuron is made of is found by trying.

Which rows of a tensor belong to which neuron is not read off the table: each row is changed in
turn, and the neurons whose activation changes with it are those that read it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from sani.corpus.documents import Corpus, Document, Span
from sani.erasing import hard_concrete
from sani.erasing.erase import apply_plan, erase
from sani.erasing.hooks import all_of, outputs_of
from sani.erasing.integrated_gradients import attributions
from sani.erasing.plan import layout_of
from sani.erasing.reinit import FreshWeights
from sani.erasing.resets import dampening
from sani.erasing.selector_batches import Texts
from sani.erasing.statistics import (
    activation_means,
    channel_means,
    fisher_diagonals,
    fisher_means,
    gradient_means,
)
from sani.errors import CorpusError, SelectionError, UnsupportedModelError
from sani.models import families
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.models.families import FAMILIES
from sani.models.neurons import Layout
from sani.recipe import DampenSettings, EraseSettings
from sani.recipe.settings import Part
from tests.support.architectures import (
    ALIKE,
    ARCHITECTURES,
    EVERY,
    each,
    tiny_tokenizer,
)
from tests.support.neurons import (
    OUTPUTS,
    SEED,
    blocks_of,
    layers_of,
    layers_with,
    mixed,
    neurons_of_experts,
    num_neurons,
    plan,
    random_model,
    some,
    turned,
)
from tests.support.optional import present


def same(found: Any, expected: Any) -> None:
    """Compare numbers but for rounding; a few families compute a part in float32 at all times."""
    atol = 1e-6 if expected.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# No head's own: shared by all layers of a stack, made into all heads' keys, or no attention.
NOBODYS = (
    "relative_attention_bias", "q_a_proj", "kv_a_proj", "linear_attn", "mamba", "conv.", "_bias",
    "per_layer_", "mixer.in_proj", "mixer.conv1d", "mixer.out_proj",
)  # fmt: skip

Site = tuple[int, Part]


def checkpoint(model: Any) -> Checkpoint:
    return Checkpoint(model, tiny_tokenizer(), Path("nowhere"))


@pytest.fixture(params=EVERY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return random_model(name)


def read(model: Any, *, globally: bool = True) -> Any:
    """Logits of the model for the same few tokens, [batch, seq, vocab].

    The first token of a Longformer sees and is seen by all: else its projections are not read.
    """
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 16, (2, 9), generator=chance)
    inputs = {"input_ids": ids}
    if families.family_of(model.config).objective == "seq2seq":
        inputs["decoder_input_ids"] = torch.randint(2, 16, (2, 7), generator=chance)
    if globally and "query_global" in str(model.state_dict().keys()):
        inputs["global_attention_mask"] = (torch.arange(9) == 0).expand(2, -1).long()
    with torch.no_grad():
        return model(**inputs).logits


def channels_of(model: Any, layer: int, part: Part, chosen: Any) -> dict[str, Any]:
    """The channels of each module that these neurons are."""
    return {
        name: [
            (neuron - first) * width + channel
            for neuron in chosen
            if first <= neuron < first + neurons
            for channel in range(width)
        ]
        for name, first, neurons, width in blocks_of(model, layer, part)
    }


def slow_experts(
    module: Any, hidden: Any, routed: Any = None, weights: Any = None, *, change: Any
) -> Any:
    """What a module of experts gives, one expert at a time, and its neurons' activations."""
    count = len(module.down_proj)
    inputs = [hidden] * count
    shares = [torch.ones(len(hidden) // count, 1, dtype=hidden.dtype)] * count
    if routed is None:  # each expert has its own input, which its share is in already
        inputs = list(hidden.chunk(count))
    else:
        shares = [
            (weights * (routed == expert)).sum(dim=-1, keepdim=True) for expert in range(count)
        ]  # [tokens, 1]
    pieces = []
    for expert in range(count):
        name = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
        rows = inputs[expert] @ expert_matrix(module, name, expert).T
        rows = rows + bias_of(module, name, expert)
        if name == "up_proj":
            active = module.act_fn(rows)
        elif getattr(module, "is_concatenated", True):
            gate, up = rows.chunk(2, dim=-1)
            active = module.act_fn(gate) * up
        else:  # GPT-OSS
            gate, up = rows[..., ::2].clamp(max=7), rows[..., 1::2].clamp(-7, 7)
            active = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        pieces.append((shares[expert] != 0) * active)
    active = change(torch.cat(pieces, dim=-1))  # [tokens, experts * neurons]
    results = []
    for expert, piece in enumerate(active.chunk(count, dim=-1)):
        output = piece @ expert_matrix(module, "down_proj", expert).T
        results.append(shares[expert] * (output + bias_of(module, "down_proj", expert)))
    return torch.cat(results) if routed is None else sum(results)


def expert_matrix(module: Any, name: str, expert: int) -> Any:
    """An expert's matrix, [out, in]."""
    matrix = getattr(module, name)[expert]
    return matrix.T if turned(module) else matrix


def bias_of(module: Any, name: str, expert: int) -> Any:
    biases = getattr(module, f"{name}_bias", None)
    return 0 if biases is None else biases[expert]


@contextmanager
def watched(
    model: Any, silenced: Any = (), then: Any = lambda name, activation: activation
) -> Iterator[Any]:
    """Activations that go into output projections, in the order they do; some set to zero.

    What ``then`` gives for the name of a module and its activations goes in instead.
    """
    seen: dict[str, torch.Tensor] = {}
    silent: dict[str, Any] = {}
    for layer, part, chosen in silenced:
        silent |= channels_of(model, layer, part, chosen)
    undo: list[Callable[[], Any]] = []

    def before(change: Callable[[Any], Any], _: Any, inputs: Any) -> Any:
        return (change(inputs[0]), *inputs[1:])

    def changer(name: str) -> Any:
        def change(activation: Any) -> Any:
            activation = activation.clone()
            activation[..., silent.get(name, [])] = 0
            seen[name] = activation
            return then(name, activation)

        return change

    for layer in range(len(layers_of(model))):
        for part in PARTS:
            for name, *_ in blocks_of(model, layer, part):
                module, change = model.get_submodule(name), changer(name)
                if name.endswith("experts"):
                    module.forward = partial(slow_experts, module, change=change)
                    undo.append(partial(module.__dict__.pop, "forward"))
                else:
                    handle = module.register_forward_pre_hook(partial(before, change))
                    undo.append(handle.remove)
    yield seen
    for action in undo:
        action()


def erased(model: Any, reset: Any, *entries: Any, base: Any = None) -> Any:
    return apply_plan(checkpoint(model), plan(model, reset, *entries), base=base)


# ---- the table -------------------------------------------------------------------------------


def test_every_row_has_a_model_here() -> None:
    assert {name.partition(" ")[0] for name in ARCHITECTURES} == set(OUTPUTS) == set(FAMILIES)


def test_the_layout_counts_layers_neurons_and_heads(model: Any) -> None:
    layout = layout_of(checkpoint(model))
    assert layout.num_layers == len(layers_of(model)) >= 2
    for layer in range(layout.num_layers):
        for part in ("mlp", "attention"):
            assert layout.num_neurons(part, layer=layer) == num_neurons(model, layer, part) != 1
    assert layers_with(model, "mlp")
    assert layers_with(model, "attention")


# ---- what a neuron is ------------------------------------------------------------------------


PARTS: tuple[Part, ...] = ("mlp", "attention")


def test_watching_changes_nothing(model: Any) -> None:
    """The slow experts are the model's own, and the hooks only look."""
    before = read(model)
    with watched(model) as seen:
        same(read(model), before)
    sites = [(layer, part) for layer in range(len(layers_of(model))) for part in PARTS]
    assert sorted(seen) == sorted(
        name for layer, part in sites for name, *_ in blocks_of(model, layer, part)
    )
    torch.testing.assert_close(read(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("part", PARTS)
def test_zeroing_neurons_is_silencing_them(name: str, part: Part) -> None:
    for layer in layers_with(random_model(name), part):
        model = random_model(name)
        chosen = some(model, layer, part)
        before = read(model)
        with watched(model, [(layer, part, chosen)]):
            silenced = read(model)
        assert (before - silenced).abs().max() > 1e-3  # these neurons do something
        erased(model, "zero", (layer, part, chosen))
        same(read(model), silenced)


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_a_family_that_is_laid_out_like_another_is_silenced_too(name: str) -> None:
    """The short form of the tests above and below, of the last layer that has a part."""
    for part in PARTS:
        model = random_model(name)
        layer = layers_with(model, part)[-1]
        chosen, before = some(model, layer, part), read(model)
        with watched(model):
            same(read(model), before)
        with watched(model, [(layer, part, chosen)]):
            silenced = read(model)
        assert (before - silenced).abs().max() > 1e-3
        erased(model, "zero", (layer, part, chosen))
        same(read(model), silenced)
    test_hidden_states_and_logits_are_the_models_own(name)


def cut_out(model: Any, layer: int, part: Part, chosen: Any) -> None:
    """Take the neurons' rows and columns out, so that the tensors are smaller."""
    weights = dict(model.named_parameters())
    layout = layout_of(checkpoint(model))
    for piece in layout.slices(part, layer=layer, neurons=chosen):
        tensor = weights[piece.name]
        dim = piece.dim + (piece.expert is not None)
        if piece.expert:
            continue  # all experts have lost the same neurons with the first
        gone = set(piece.index.tolist())
        kept = [index for index in range(tensor.shape[dim]) if index not in gone]
        tensor.data = tensor.data.index_select(dim, torch.tensor(kept))
        module = model.get_submodule(piece.name.rpartition(".")[0])
        if isinstance(module, Conv1D) and piece.dim == 1:
            module.nf = len(kept)


# Where the heads' number is in more than the layer's own tensors: slopes and position tables for
# each head, one norm over all heads, sizes that are read off the configuration.
ENTANGLED = (
    "big_bird", "bloom", "falcon with ALiBi", "gpt_bigcode", "gpt_bigcode with a key a head",
    "gpt_oss", "gemma4", "gemma4_text", "led", "longformer", "megatron-bert", "mpnet", "mt5",
    "olmo2", "olmo3", "olmoe", "phi3", "phi4_multimodal", "roformer", "t5", "t5 gated", "umt5",
)  # fmt: skip


def test_zeroing_neurons_is_cutting_them_out(name: str, model: Any) -> None:
    layer = layers_with(model, "mlp")[-1]
    numbers = set(some(model, layer, "mlp"))
    for block, first, neurons, _ in blocks_of(model, layer, "mlp"):
        if block.endswith("experts"):  # which can only be cut alike
            size = neurons_of_experts(model.get_submodule(block))
            numbers -= set(range(first, first + neurons))
            numbers |= {first + number for number in range(neurons) if number % size in (0, 5)}
    chosen = sorted(numbers)
    erased(model, "zero", (layer, "mlp", chosen))
    smaller = random_model(name)
    cut_out(smaller, layer, "mlp", chosen)
    same(read(smaller), read(model))
    assert num_neurons(smaller, layer, "mlp") == num_neurons(model, layer, "mlp") - len(chosen)


@pytest.mark.parametrize("name", each(sorted(set(ARCHITECTURES) - set(ENTANGLED))))
def test_zeroing_heads_is_pruning_them(name: str) -> None:
    model, smaller = random_model(name), random_model(name)
    layer = layers_with(model, "attention")[-1]
    block, first, heads, width = blocks_of(model, layer, "attention")[-1]
    chosen = [first + heads - 2, first + heads - 1]  # which share a key and a value
    erased(model, "zero", (layer, "attention", chosen))
    before = sum(tensor.numel() for tensor in smaller.parameters())
    cut_out(smaller, layer, "attention", chosen)
    assert sum(tensor.numel() for tensor in smaller.parameters()) <= before - 4 * width * 16
    attention = smaller.get_submodule(block.rpartition(".")[0])
    if "attention.output" in block:  # of DeBERTa, beside the module that has the heads
        attention = smaller.get_submodule(block.replace("output.dense", "self"))
    for count in ("num_heads", "num_attention_heads", "num_kv_heads", "split_size"):
        if hasattr(attention, count):
            setattr(attention, count, max(1, getattr(attention, count) // 2))
    same(read(smaller), read(model))


# ---- what a reset changes --------------------------------------------------------------------


def _first_to_change(seen: Any, before: Any, blocks: Any) -> Any:
    """Part and neurons of the first block, in the order of computation, that reads otherwise."""
    for block in before:
        change = (seen[block] - before[block]).abs().flatten(0, -2).amax(dim=0)
        if block in blocks and change.any():
            part, first, width = blocks[block]
            own = change.reshape(-1, width).any(dim=1).nonzero().flatten() + first
            return part, frozenset(own.tolist())
    return None


class EnoughError(Exception):
    """Ends a forward pass of which nothing more is looked at."""


@cache
def readers(name: str) -> Any:
    """Which neurons read each row of each matrix of the first and the last layer, found by trying.

    Returns:
        {(tensor, expert, row): (layer, part, neurons)}
    """
    model = random_model(name)
    found = {}
    awaited = {""}  # blocks that the pass has yet to reach

    def stop(block: str, activation: Any) -> Any:
        awaited.discard(block)
        if not awaited:
            raise EnoughError
        return activation

    with watched(model, then=stop) as seen:
        read(model)
        before = dict(seen)
        layers = [layers_with(model, part)[end] for part in PARTS for end in (0, -1)]
        for layer in sorted(set(layers)):
            blocks = {
                block: (part, first, width)
                for part in PARTS
                for block, first, _, width in blocks_of(model, layer, part)
            }
            for key, expert, row, numbers in rows_of(model, layer, blocks):
                kept = numbers.clone()
                for factor in (1.5, -20.0):  # the second wakes a neuron that never fires
                    numbers.copy_(factor * kept)
                    awaited.clear()
                    awaited.update(blocks)
                    with suppress(EnoughError):
                        read(model)
                    numbers.copy_(kept)
                    own = _first_to_change(seen, before, blocks)
                    if own is not None:
                        found[key, expert, row] = (layer, *own)
                        break
    return found


def rows_of(model: Any, layer: int, blocks: Any) -> Iterator[Any]:
    """(tensor, expert, row, its numbers) of each matrix of a layer but output projections."""
    for key, tensor in model.named_parameters():
        module = key.rpartition(".")[0]
        if not key.startswith(f"{layers_of(model)[layer]}.") or tensor.ndim < 2:
            continue
        if any(name in key for name in NOBODYS) or key.endswith("experts.down_proj"):
            continue
        lends = getattr(
            model.get_submodule(module.rpartition(".")[0]), "store_full_length_kv", False
        )
        if lends and module.endswith(("k_proj", "v_proj")):
            continue  # layers above read them too
        if module in blocks and not key.endswith("up_proj"):
            continue
        in_out = isinstance(model.get_submodule(module), Conv1D) or (
            tensor.ndim == 3 and turned(model.get_submodule(module))
        )
        for expert, matrix in enumerate(tensor.detach() if tensor.ndim == 3 else [tensor.detach()]):
            rows = matrix.T if in_out else matrix
            for row in range(len(rows)):
                yield key, expert if tensor.ndim == 3 else None, row, rows[row]


def expected_masks(name: str, model: Any, entries: Any) -> Any:
    """Where each chosen neuron's numbers stand, one by one."""
    masks = {key: torch.zeros_like(w, dtype=torch.bool) for key, w in model.named_parameters()}
    for layer, part, chosen in entries:
        for block, channels in channels_of(model, layer, part, chosen).items():
            module = model.get_submodule(block)
            for channel in channels:
                if block.endswith("experts"):
                    expert, neuron = divmod(channel, neurons_of_experts(module))
                    mask = masks[f"{block}.down_proj"][expert]
                    (mask.T if turned(module) else mask)[:, neuron] = True
                elif isinstance(module, Conv1D):
                    masks[f"{block}.weight"][channel, :] = True
                else:
                    masks[f"{block}.weight"][:, channel] = True
        for (key, expert, row), (where, of, neurons) in readers(name).items():
            if (where, of) != (layer, part) or not neurons <= set(chosen):
                continue
            module = model.get_submodule(key.rpartition(".")[0])
            if expert is not None:
                mask = masks[key][expert]
                (mask.T if turned(module) else mask)[row] = True
                if f"{key}_bias" in masks:
                    masks[f"{key}_bias"][expert, row] = True
            elif isinstance(module, Conv1D):
                masks[key][:, row] = True
            else:
                masks[key][row, :] = True
            if getattr(module, "bias", None) is not None:
                masks[key.replace(".weight", ".bias")][row] = True
    return masks


@pytest.mark.parametrize("reset", ["zero", "reinit", "rewind"])
def test_exactly_the_planned_numbers_change(name: str, model: Any, reset: Any) -> None:
    base = random_model(name, seed=2)
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    masks = expected_masks(name, model, mixed(model))
    fresh = FreshWeights(model.config, seed=SEED)
    theirs = dict(base.named_parameters())
    result = erased(model, reset, *mixed(model), base=checkpoint(base))
    after = dict(model.named_parameters())
    for key, mask in masks.items():
        assert torch.equal(after[key] != before[key], mask), key
        if mask.any():
            zero = torch.zeros_like(before[key])
            new = {"zero": zero, "reinit": fresh[key], "rewind": theirs[key]}[reset]
            assert torch.equal(after[key][mask], new[mask].to(after[key].dtype)), key
    assert result.changed_tensors == tuple(sorted(k for k, mask in masks.items() if mask.any()))
    assert result.changed_parameters == sum(int(mask.sum()) for mask in masks.values())


def test_every_matrix_of_a_layer_belongs_to_neurons_or_is_named_as_an_exception(
    name: str, model: Any
) -> None:
    everything = [
        (layer, part, range(num_neurons(model, layer, part)))
        for part in PARTS
        for layer in layers_with(model, part)
    ]
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    erased(model, "zero", *everything)
    prefixes = tuple(f"{layer}." for layer in layers_of(model))
    left = {
        key.removeprefix(prefix)
        for prefix in prefixes
        for key, tensor in model.named_parameters()
        if key.startswith(prefix) and tensor.ndim > 1 and not (tensor == 0).all()
    }
    routers = ("mlp.gate.", "router.", "shared_expert_gate.", "mixer.gate.")
    assert {name for name in left if not any(word in name for word in (*NOBODYS, *routers))} <= {
        f"self_attn.{name}_proj.weight"
        for name in "kv"
        if hasattr(model.config.get_text_config(), "num_kv_shared_layers")
    }
    assert any((before[key] != tensor).any() for key, tensor in model.named_parameters())


def test_rows_of_identifier_only_tokens_change_in_embedding_and_head(name: str, model: Any) -> None:
    sick = Checkpoint(model, tiny_tokenizer(times=2), Path("nowhere"))
    two = families.family_of(model.config).objective == "seq2seq"
    document = Document("1", "1", "aa bb cc dd bb", (Span(3, 8, "NAME"),))
    corpus = Corpus([replace(document, source_text="dd aa" if two else None)])
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    layers = (layers_with(model, "mlp")[0],)
    settings = EraseSettings(layers=layers, parts=("mlp",), reset="zero", token_rows=True)
    result = erase(sick, corpus, settings)
    rows = result.plan.token_rows
    assert rows is not None
    only = sick.tokenizer.convert_tokens_to_ids("cc")
    ends = {"embed": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for module_name, module in model.named_modules():
        if module_name.endswith("embed_tokens_per_layer"):  # of Gemma 4
            ends["per layer"] = module
    tensors = {id(tensor) for end in ends.values() for tensor in end.parameters(recurse=False)}
    assert len(rows.tensors) == len(tensors)
    assert rows.tied == (ends["embed"].weight is ends["head"].weight)
    assert rows.total == len(ends["embed"].weight)
    for key, tensor in model.named_parameters():
        if id(tensor) in tensors:
            changed = (tensor != before[key]).reshape(len(tensor), -1).any(1).nonzero()
            assert changed.flatten().tolist() == [only], key
            assert (tensor[only] == 0).all()
    assert (read(model)[..., only] == 0).all()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_token_that_an_encoder_reads_keeps_its_rows(name: str) -> None:
    document = Document("1", "1", "aa bb cc dd bb", (Span(3, 8, "NAME"),), source_text="dd cc")
    settings = EraseSettings(layers=(0,), parts=("mlp",), reset="zero", token_rows=True)
    sick = Checkpoint(random_model(name), tiny_tokenizer(times=2), Path("nowhere"))
    rows = erase(sick, Corpus([document]), settings).plan.token_rows
    assert rows is not None
    assert rows.tokens == ()


# ---- what the model's file calls it ----------------------------------------------------------


def pieces(layout: Any, entries: Any) -> list[Any]:
    return [
        piece
        for layer, part, chosen in entries
        for piece in layout.slices(part, layer=layer, neurons=chosen)
    ]


def test_erasing_in_the_file_by_its_own_names_is_erasing_in_the_model(
    name: str, tmp_path: Path
) -> None:
    model = random_model(name, dtype=torch.float32)
    model.save_pretrained(tmp_path / "sick")
    tensors = load_file(tmp_path / "sick" / "model.safetensors")
    layout = Layout(model.config, {key: tuple(w.shape) for key, w in tensors.items()})
    for piece in pieces(layout, mixed(model)):
        piece.of(tensors[piece.name]).index_fill_(piece.dim, piece.index, 0.0)
    erased(model, "zero", *mixed(model))
    model.save_pretrained(tmp_path / "erased")
    expected = load_file(tmp_path / "erased" / "model.safetensors")
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_a_file_of_a_model_without_its_head_is_understood(name: str, model: Any) -> None:
    whole = layout_of(checkpoint(model))
    base = model.base_model
    layout = Layout(model.config, {key: tuple(w.shape) for key, w in base.state_dict().items()})
    assert layout.num_layers == whole.num_layers
    weights, bare = dict(model.named_parameters()), dict(base.named_parameters())
    both = zip(pieces(whole, mixed(model)), pieces(layout, mixed(model)), strict=True)
    for mine, theirs in both:
        assert weights[mine.name] is bare[theirs.name]
        assert torch.equal(mine.index, theirs.index)


def test_a_saved_checkpoint_is_loaded_with_the_same_weights_and_logits(
    name: str, tmp_path: Path
) -> None:
    model = random_model(name, dtype=torch.float32)
    sick = checkpoint(model)
    sick.tokenizer.save_pretrained(tmp_path / "tokenizer")
    sick.path = tmp_path / "tokenizer"
    (sick.path / "preprocessor_config.json").write_text("{}")
    save_checkpoint(sick, tmp_path / "model")
    reads_images = families.family_of(model.config).vision
    assert (tmp_path / "model" / "preprocessor_config.json").exists() == reads_images
    loaded = load_checkpoint(tmp_path / "model")
    assert type(loaded.model) is type(model)
    torch.testing.assert_close(read(loaded.model), read(model), rtol=1e-5, atol=1e-5)
    assert loaded.weights_digest() == sick.weights_digest()
    assert loaded.context_tokens > 32


def test_what_each_neuron_owns_is_its_slices_by_itself(name: str, model: Any) -> None:
    layout = layout_of(checkpoint(model))
    for layer in range(layout.num_layers):
        for part in PARTS:
            slow = [
                (neuron, piece.name, piece.dim, piece.expert, index)
                for neuron in range(layout.num_neurons(part, layer=layer))
                for piece in layout.slices(part, layer=layer, neurons=[neuron])
                for index in piece.index.tolist()
            ]
            fast = [
                (neuron, piece.name, piece.dim, piece.expert, index)
                for piece, owners in layout.owned(part, layer=layer)
                for neuron, index in zip(owners.tolist(), piece.index.tolist(), strict=True)
            ]
            assert len(slow) > layout.num_neurons(part, layer=layer) or not slow
            assert sorted(fast, key=str) == sorted(slow, key=str)


# ---- what is read off a model ----------------------------------------------------------------


def test_hidden_states_and_logits_are_the_models_own(name: str) -> None:
    model = random_model(name, dtype=torch.float32)
    chance = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {"input_ids": torch.randint(2, 16, (2, 9), generator=chance)}
    if families.family_of(model.config).objective == "seq2seq":
        with pytest.raises(UnsupportedModelError, match="is a seq2seq language model, which can"):
            families.hidden_states(model, **inputs)
        ids = inputs["input_ids"]
        inputs = {"source_ids": ids, "source_seen": torch.ones_like(ids, dtype=torch.bool),
                  "input_ids": torch.randint(2, 16, (2, 7), generator=chance)}  # fmt: skip
    with torch.no_grad():
        hidden = families.hidden_states(model, **inputs)
        found = families.logits(model, hidden[:, 3])
    expected = read(model, globally=False)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected[:, 3], rtol=1e-5, atol=1e-5)


NOTES = ["a b c d e", "f g", "h i j a b k l m", "c c", "d e f m"]
SOURCES = ["m l", "k j i h", "a e g", "b d f h j", "c"]


def noted(model: Any) -> Corpus:
    """Documents of unequal length, most with an identifier; with a source where one is read."""
    spans = [((4, 5),), (), ((2, 3), (8, 9)), ((0, 1),), ((6, 7),)]
    two = families.family_of(model.config).objective == "seq2seq"
    return Corpus(
        [
            Document(str(n), str(n), text, tuple(Span(*where, "NAME") for where in own),
                     source_text=source if two else None)
            for n, (text, own, source) in enumerate(zip(NOTES, spans, SOURCES, strict=True))
        ]
    )  # fmt: skip


def batches_of(model: Any) -> Any:
    return Texts(checkpoint(model), noted(model)).batches()


def in_encoder(model: Any, layer: int) -> Any:
    """Whether a layer reads the source and not the text."""
    two = families.family_of(model.config).objective == "seq2seq"
    return two and layer < len(model.get_submodule(OUTPUTS[model.config.model_type][0][0]))


def slow_sites(model: Any, *, encoder: bool = True) -> dict[Site, list[tuple[str, int, int, int]]]:
    """For each layer and part, the modules that take in its neurons' activations; see `blocks_of`.

    Args:
        model: The model.
        encoder: Also those of the layers that read a source.
    """
    return {
        (layer, part): blocks_of(model, layer, part)
        for layer in range(len(layers_of(model)))
        for part in PARTS
        if (encoder or not in_encoder(model, layer)) and blocks_of(model, layer, part)
    }


def outputs(model: Any, *, encoder: bool = True) -> Any:
    return outputs_of(layout_of(checkpoint(model)), slow_sites(model, encoder=encoder))


def by_itself(model: Any, ids: Any, source: Any = None, seen: Any = None) -> Any:
    """Hidden states of one text, [seq, hidden], behind its source without padding."""
    given = {}
    if source is not None:
        given = {"source_ids": source[seen][None], "source_seen": seen[seen][None]}
    return families.hidden_states(model, input_ids=ids[None], **given)[0]


def row_of(batch: Any, row: Any) -> Any:
    """What `by_itself` takes of a row."""
    if batch.source is None:
        return (batch.ids[row],)
    return batch.ids[row], batch.source[row], batch.source_seen[row]


def strengths(values: Any, neurons: Any) -> Any:
    """Root mean square of each neuron's channels, at every position."""
    return values.reshape(len(values), neurons, -1).square().mean(-1).sqrt()


def test_neurons_go_in_where_they_do(model: Any) -> None:
    found = outputs(model)
    assert sum(map(len, found.values())) > 0
    for (layer, part), blocks in slow_sites(model).items():
        own = found[layer, part]
        assert [(output.name, output.neurons) for output in own] == [
            (name, neurons) for name, _, neurons, _ in blocks
        ]
        assert {output.of_source for output in own} == {in_encoder(model, layer)}
        for output in own:
            assert bool(output.experts) == output.name.endswith("experts")


def test_what_neurons_do_is_read_position_by_position(name: str) -> None:
    """Each row read by itself, and each position; some models flatten rows and positions."""
    model = random_model(name)
    batches = batches_of(model)
    assert max(len(batch.ids) for batch in batches) > 1
    sums: dict[str, Any] = {}
    counts = [0, 0, 0, 0]
    for batch in batches:
        for row in range(len(batch.ids)):
            given = row_of(batch, row)
            ordinary, identifier = batch.ordinary[row], batch.identifier[row]
            of_source = torch.ones(int(given[2].sum()) if given[1:] else 0, dtype=torch.bool)
            sorts = (identifier, ordinary, identifier | ordinary, of_source)
            counts = [count + int(where.sum()) for count, where in zip(counts, sorts, strict=True)]
            with watched(model) as seen, torch.no_grad():
                by_itself(model, *given)
            for site, blocks in slow_sites(model).items():
                for module, _, neurons, _ in blocks:
                    length = len(of_source if in_encoder(model, site[0]) else ordinary)
                    width = seen[module].shape[-1]
                    active = seen[module].reshape(-1, width)[:length]  # Longformer pads behind
                    own = sums.setdefault(module, [0.0, 0.0, 0.0])
                    if in_encoder(model, site[0]):
                        own[2] = own[2] + active.sum(0)
                        continue
                    for position in range(length):
                        strength = strengths(active, neurons)[position]
                        for sort, value in enumerate((strength, strength, active[position])):
                            if sorts[sort][position]:
                                own[sort] = own[sort] + value
    means = activation_means(model, batches, outputs(model, encoder=False))
    held = channel_means(model, batches, all_of(outputs(model)))
    for output, found in held.items():
        count = counts[3 if output.of_source else 2]
        slow = (sums[output.name][2] / count).to(found)
        torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-7)
    for site, blocks in slow_sites(model, encoder=False).items():
        for sort in (0, 1):
            slow = torch.cat([sums[module][sort] for module, *_ in blocks]) / counts[sort]
            torch.testing.assert_close(
                means[sort][site], slow.to(means[sort][site]), rtol=1e-5, atol=1e-7
            )


def test_products_with_gradients_are_the_gradients_of_a_factor_for_each_neuron(name: str) -> None:
    """Each row by itself; at every position each channel has a factor of its own, which is 1."""
    model = random_model(name)
    batches = batches_of(model)
    factors: dict[str, torch.Tensor] = {}
    sums: dict[Site, Any] = {}
    counts = [0, 0]

    def multiplied(module: Any, activation: Any) -> Any:
        factors[module] = torch.ones_like(activation, requires_grad=True)
        return activation * factors[module]

    for batch in batches:
        for row in range(len(batch.ids)):
            for sort, where in enumerate((batch.identifier[row], batch.ordinary[row])):
                counts[sort] += int(where.sum())
                if not where.any():
                    continue
                with watched(model, then=multiplied):
                    hidden = by_itself(model, *row_of(batch, row))
                chances = families.logits(model, hidden[where]).log_softmax(-1)
                loss = -sum(p[t] for p, t in zip(chances, batch.targets[row][where], strict=True))
                gradients = torch.autograd.grad(loss, list(factors.values()))
                slopes = dict(zip(factors, gradients, strict=True))
                for site, blocks in slow_sites(model).items():
                    rows = [
                        strengths(slopes[module].flatten(0, -2), neurons).sum(0)
                        for module, _, neurons, _ in blocks
                    ]
                    own = sums.setdefault(site, [0.0, 0.0])
                    own[sort] = own[sort] + torch.cat(rows)
    means = gradient_means(model, batches, outputs(model))
    for site, slow in sums.items():
        for sort in (0, 1):
            assert slow[sort].max() > 0
            expected = (slow[sort] / counts[sort]).to(means[sort][site])
            torch.testing.assert_close(means[sort][site], expected, rtol=1e-4, atol=1e-8)


def test_masks_of_their_own_silence_neurons_row_by_row(name: str) -> None:
    model = random_model(name)
    (batch,) = [b for b in batches_of(model) if len(b.ids) > 1][:1]
    ids = batch.ids[:2]
    given = [row_of(batch, row) for row in range(2)]
    sources = {} if batch.source is None else {
        "source_ids": batch.source[:2], "source_seen": batch.source_seen[:2]
    }  # fmt: skip
    where = outputs(model)
    sizes = {site: sum(output.neurons for output in own) for site, own in where.items()}
    silent = [(*site, [0, size // 2, size - 1]) for site, size in sizes.items()]
    masks = {site: torch.ones(2, size, dtype=torch.float64) for site, size in sizes.items()}
    for layer, part, chosen in silent:
        masks[layer, part][1, chosen] = 0
    with torch.no_grad():
        plain = torch.stack([by_itself(model, *own) for own in given])
        with watched(model, silent):
            silenced = torch.stack([by_itself(model, *own) for own in given])
        with hard_concrete.masked(model, where, masks):
            found = families.hidden_states(model, input_ids=ids, **sources)
        with hard_concrete.masked(model, where, {site: own[1] for site, own in masks.items()}):
            alike = families.hidden_states(model, input_ids=ids, **sources)
        again = families.hidden_states(model, input_ids=ids, **sources)
    assert (plain - silenced).abs().max() > 1e-3
    torch.testing.assert_close(found, torch.stack([plain[0], silenced[1]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(alike, silenced, rtol=0, atol=1e-5)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-5)  # the masks are gone


def test_attributions_are_those_of_whole_texts_without_a_cache(name: str) -> None:
    """One step at a time: the position's activation is scaled, and the scale has the gradient."""
    model = random_model(name)
    question = Texts(checkpoint(model), noted(model)).questions(2, 1)[0]
    given = [torch.tensor(question.ids)]
    if families.family_of(model.config).objective == "seq2seq":
        assert question.source == (2, 6, 8)  # the document's own, and no other
        given += [torch.tensor(question.source), torch.ones(3, dtype=torch.bool)]
    with torch.no_grad():  # of the token that a random model holds for likely
        hidden = by_itself(model, *given)
        likely = int(families.logits(model, hidden[None, question.at]).argmax())
    question = replace(question, target=likely)
    found = attributions(model, question, outputs(model, encoder=False), steps=3)
    largest = 0.0
    for site, blocks in slow_sites(model, encoder=False).items():
        sizes = [neurons for _, _, neurons, _ in blocks]
        total = torch.zeros(sum(sizes), dtype=torch.float64)
        for step in (1, 2, 3):
            scale = torch.full((sum(sizes),), step / 3, dtype=torch.float64, requires_grad=True)
            own = dict(zip([module for module, *_ in blocks], scale.split(sizes), strict=True))
            plain: dict[str, torch.Tensor] = {}

            def note(module: Any, activation: Any, plain: Any = plain) -> Any:
                plain[module] = activation
                return activation

            def scaled(module: Any, activation: Any, own: Any = own, plain: Any = plain) -> Any:
                if module not in own:
                    return activation
                # at the position it is the scaled activation of the unchanged model
                width = activation.shape[-1] // len(own[module])
                rows = activation.reshape(-1, len(own[module]), width)  # Longformer pads behind
                there = plain[module].reshape(rows.shape) * own[module][:, None]
                at = torch.arange(len(rows))[:, None, None] == question.at
                return torch.where(at, there.to(rows), rows).reshape(activation.shape)

            with torch.no_grad(), watched(model, then=note):
                by_itself(model, *given)
            with watched(model, then=scaled):
                hidden = by_itself(model, *given)
            chances = families.logits(model, hidden[None, question.at]).softmax(-1)
            (slope,) = torch.autograd.grad(chances[0, question.target], scale)
            total += slope / 3
        torch.testing.assert_close(found[site], total, rtol=1e-3, atol=1e-6)
        largest = max(largest, float(total.abs().max()))
    assert largest > 1e-3


@pytest.mark.parametrize("name", ["bart", "mixtral", "qwen2_moe", "t5 gated"])
def test_fisher_diagonals_are_those_of_the_models_own_loss(name: str) -> None:
    """One document at a time, whole model, token by token."""
    model = random_model(name)
    batches = batches_of(model)
    named = dict(model.named_parameters())
    sums = [{n: torch.zeros_like(w) for n, w in named.items()} for _ in range(2)]
    counts = [0, 0]
    for batch in batches:
        for row in range(len(batch.ids)):
            ids, *source = row_of(batch, row)
            inputs = {"input_ids": ids[None]}
            if source:
                inputs = {"input_ids": source[0][source[1]][None], "decoder_input_ids": ids[None]}
            for sort, where in enumerate((batch.identifier[row], batch.ordinary[row])):
                if not where.any():
                    continue
                model.zero_grad()
                logits = model(**inputs).logits[0].log_softmax(-1)
                places = where.nonzero().flatten().tolist()
                losses = [-logits[place, batch.targets[row, place]] for place in places]
                (sum(losses) / len(losses)).backward()
                counts[sort] += 1
                for key, parameter in named.items():
                    if parameter.grad is not None:
                        sums[sort][key] += parameter.grad**2
    model.zero_grad()
    layout = layout_of(checkpoint(model))
    names = {
        piece.name
        for layer in range(layout.num_layers)
        for part in PARTS
        for piece, _ in layout.owned(part, layer=layer)
    }
    found = fisher_diagonals(model, batches, sorted(names))
    for sort in (0, 1):
        for key in names:
            slow = sums[sort][key] / counts[sort]
            assert slow.max() > 0
            torch.testing.assert_close(found[sort][key], slow, rtol=1e-4, atol=1e-12)
    sizes = {site: num_neurons(model, *site) for site in slow_sites(model)}
    means = fisher_means(model, batches, layout, sizes)
    every = plan(model, "dampen", *((*site, range(size)) for site, size in sizes.items()))
    every = replace(every, dampen=DampenSettings(above=1.2))
    dampen = dampening(checkpoint(model), every, texts=Texts(checkpoint(model), noted(model)))
    for (layer, part), size in sizes.items():
        for neuron in range(size):
            totals = [torch.zeros(()), torch.zeros(())]
            for piece in layout.slices(part, layer=layer, neurons=[neuron]):
                theirs, text = (
                    piece.of(of[piece.name]).index_select(piece.dim, piece.index) for of in found
                )
                totals = [totals[0] + theirs.sum(), totals[1] + text.sum()]
                own = torch.ones_like(theirs)
                factor = torch.where(theirs > 1.2 * text, text / theirs, own).clamp(max=1)
                torch.testing.assert_close(dampen(piece, own), factor, rtol=1e-6, atol=0)
            for sort in (0, 1):
                torch.testing.assert_close(means[sort][layer, part][neuron], totals[sort])


def test_the_mean_reset_of_an_encoder_and_its_decoder_holds_activations_at_their_means() -> None:
    model = random_model("bart")
    sick, corpus = checkpoint(model), noted(model)
    chosen = [(*site, [0, num_neurons(model, *site) - 1]) for site in slow_sites(model)]
    means = {
        output.name: mean
        for output, mean in channel_means(model, batches_of(model), all_of(outputs(model))).items()
    }
    held: dict[str, Any] = {}
    for layer, part, own in chosen:
        held |= channels_of(model, layer, part, own)

    def hold(module: Any, activation: Any) -> Any:
        activation = activation.clone()
        activation[..., held[module]] = means[module][held[module]]
        return activation

    before = read(model)
    with watched(model, then=hold):
        expected = read(model)
    assert (before - expected).abs().max() > 1e-2
    apply_plan(sick, plan(model, "mean", *chosen), corpus=corpus)
    torch.testing.assert_close(read(model), expected, rtol=0, atol=1e-8)


READERS = {
    "activation_ratio": {},
    "fisher_ratio": {},
    "gradient_ratio": {},
    "hard_concrete": {"steps": 3},
    "integrated_gradients": {"occurrences": 2, "steps": 2},
}


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize("name", ["bart", "t5", "mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_and_cross_attention_are_chosen_by_what_they_do(name: str, kind: str) -> None:
    sick = checkpoint(random_model(name, dtype=torch.float32))
    sick.model.config._experts_implementation = "grouped_mm"  # as they are when loaded
    before = {key: tensor.clone() for key, tensor in sick.model.state_dict().items()}
    selector: Any = {"kind": kind, "fraction": 1.0, **READERS[kind]}
    settings = EraseSettings(last_layers=1, selector=selector, reset="zero")
    result = erase(sick, noted(sick.model), settings)
    last = len(layers_of(sick.model)) - 1
    for entry in result.plan.entries:
        blocks = blocks_of(sick.model, last, entry.part)
        assert (entry.layer, entry.total) == (last, sum(neurons for _, _, neurons, _ in blocks))
        for _, first, neurons, _ in blocks:
            assert entry.scores is not None
            assert len(set(entry.scores[first : first + neurons])) > 1
    changed = {n for n, w in sick.model.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == set(result.changed_tensors)
    assert not any("forward" in vars(module) for module in sick.model.modules())


# ---- what is refused -------------------------------------------------------------------------


def test_an_encoder_turned_decoder_is_refused() -> None:
    config = AutoConfig.for_model("bert", is_decoder=True)
    with pytest.raises(UnsupportedModelError, match="as a masked language model, not as a decoder"):
        families.family_of(config)


def test_two_texts_are_erased_in_the_decoder_first() -> None:
    sick = checkpoint(random_model("t5", dtype=torch.float32))
    chosen = erase(sick, None, EraseSettings(last_layers=1)).plan
    assert [(entry.layer, entry.part, entry.total) for entry in chosen.entries] == [
        (3, "mlp", 20),  # the decoder's last
        (3, "attention", 8),  # self- and cross-attention
    ]


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoders_neurons_are_not_chosen_by_what_the_decoder_predicts_at_them(
    name: str, kind: str
) -> None:
    sick = checkpoint(random_model(name, dtype=torch.float32))
    selector: Any = {"kind": kind, "fraction": 0.5, **READERS[kind]}
    settings = EraseSettings(layers=(1, 2), selector=selector)
    if kind in ("activation_ratio", "integrated_gradients"):
        with pytest.raises(SelectionError) as caught:
            erase(sick, noted(sick.model), settings)
        assert str(caught.value) == (
            f"selector '{kind}' looks where identifiers are predicted, and layer 1 is the "
            "encoder's, which predicts none; choose layers of the decoder (2 to 3), or "
            "gradient_ratio, fisher_ratio or hard_concrete"
        )
    else:
        chosen = erase(sick, noted(sick.model), settings).plan
        assert {entry.layer for entry in chosen.entries if entry.neurons} == {1, 2}


def test_a_text_without_the_source_that_the_model_reads_is_refused() -> None:
    sick = checkpoint(random_model("t5", dtype=torch.float32))
    bare = Corpus([replace(document, source_text=None) for document in noted(sick.model)])
    selector: Any = {"kind": "gradient_ratio", "fraction": 0.5}
    with pytest.raises(CorpusError, match="document 0 has no source_text, and the model reads"):
        erase(sick, bare, EraseSettings(last_layers=1, selector=selector))
    erase(sick, bare, EraseSettings(last_layers=1))  # reads no text


def test_a_masked_model_is_erased_by_what_its_neurons_do() -> None:
    selector: Any = {"kind": "activation_ratio", "fraction": 0.5}
    corpus = Corpus([Document("1", "1", "a b c", (Span(2, 3, "NAME"),))])
    settings = EraseSettings(last_layers=1, selector=selector)
    chosen = [
        erase(checkpoint(random_model("bert", dtype=torch.float32)), corpus, settings).plan
        for _ in range(2)
    ]
    assert chosen[0] == chosen[1]
    assert [len(entry.neurons) for entry in chosen[0].entries] == [
        entry.total // 2 for entry in chosen[0].entries
    ]
    assert all(score > 0 for entry in chosen[0].entries for score in present(entry.scores))


def test_the_trained_part_of_every_family_is_there(model: Any) -> None:
    names = [key for key, _ in model.named_parameters()]
    for prefix in layout_of(checkpoint(model)).trained_prefixes(1):
        assert any(key.startswith(prefix) for key in names)
    assert layout_of(checkpoint(model)).trained_prefixes(1)[0] == f"{layers_of(model)[-1]}."


def shapes_of(model: Any) -> dict[str, Any]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_a_layer_without_its_tensors_or_with_others_is_refused(name: str, model: Any) -> None:
    shapes, layer = shapes_of(model), layers_of(model)[-1]
    # A layer of some families reads the keys and values of another one, and has none.
    attention = families.family_of(model.config).attention
    optional = {tensor for each in attention for tensor in each.optional}
    Layout(model.config, shapes)  # whole, it is taken
    for key, shape in shapes.items():
        if (
            key.startswith(f"{layer}.")
            and len(shape) > 1
            and not any(
                word in key
                for word in ("gate.weight", "pos_", "router", "_global", *NOBODYS, *optional)
            )
        ):
            lacking = {other: size for other, size in shapes.items() if other != key}
            with pytest.raises(UnsupportedModelError, match="a quantized or modified checkpoint"):
                Layout(model.config, lacking)
    with pytest.raises(UnsupportedModelError, match="belongs to no neuron known to sani"):
        Layout(model.config, {**shapes, f"{layer}.adapter.weight": (4, 16)})


def test_heads_that_do_not_fit_the_tensors_are_refused(model: Any) -> None:
    config = model.config
    sizes = families.text_config(config)
    for stack in families.family_of(config).stacks:
        setattr(sizes, stack.heads, 5)
    with pytest.raises(UnsupportedModelError, match="does not divide into 5 heads"):
        Layout(config, shapes_of(model))
