"""Levanter's Llama and GPT-2, of random weights, beside Levanter's own LoRA: `make test-stacks`."""

import functools
import json
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from zoo_cases import perturb

with warnings.catch_warnings(action="ignore"):
    from levanter.layers.attention import AttentionMask
    from levanter.lora import LoraConfig, lora_state_dict, loraize, save_peft_pretrained
    from levanter.models.gpt2 import Gpt2Config
    from levanter.models.llama import LlamaConfig

import jno_lora_haliax  # noqa: F401
from jno.lora import Net, lora_trainable_filter, merge_lora
from jno.lora.extending import adapted_layers, modules_by_path
from jno_lora_peft import load_peft, save_peft

# Levanter's code promotes dtypes and ranks, and warns.
pytestmark = [pytest.mark.filterwarnings("ignore")]

RANK, ALPHA = 2, 3.0
VOCAB, BATCH, POSITION = hax.make_axes(vocab=32, batch=2, position=8)
IDS = hax.random.randint(jax.random.key(1), (BATCH, POSITION), 0, VOCAB.size)


@pytest.fixture(autouse=True)
def lenient():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class Case(NamedTuple):
    """A configuration, some of its layers, and names in files.

    - `prefix`: Levanter's prefix; `names`, `paths`: rules from paths to PEFT's names, and back.
    """

    config: Any
    targets: list[str]
    prefix: str
    names: dict[str, str]
    paths: dict[str, str]


LLAMA = {"seq_len": 8, "hidden_dim": 16, "intermediate_dim": 24, "num_layers": 3}
LLAMA |= {"num_heads": 4, "num_kv_heads": 2, "gradient_checkpointing": False}
GPT2 = {"seq_len": 8, "hidden_dim": 16, "num_layers": 3, "num_heads": 4}
CASES = {
    "Llama": Case(
        LlamaConfig(**LLAMA),
        ["q_proj", "v_proj", "down_proj"],
        "base_model.model",
        {r"^transformer/layers/stacked/(.*)\[(\d+)\]$": r"model/layers/\2/\1"},
        {r"^model/layers/(\d+)/(.*)": r"transformer/layers/stacked/\2[\1]"},
    ),
    "Llama as a list of layers": Case(
        LlamaConfig(**LLAMA, scan_layers=False),
        ["q_proj", "v_proj", "down_proj"],
        "base_model.model",
        {"^transformer/layers/blocks/": "model/layers/"},
        {"^model/layers/": "transformer/layers/blocks/"},
    ),
    "GPT-2": Case(
        Gpt2Config(**GPT2),
        ["c_attn", "c_proj"],
        "base_model.model.transformer",
        {r"^transformer/blocks/stacked/(.*)\[(\d+)\]$": r"transformer/h/\2/\1"},
        {r"^transformer/h/(\d+)/(.*)": r"transformer/blocks/stacked/\2[\1]"},
    ),
}


@functools.cache
def model_of(name):
    config = CASES[name].config
    return config.model_type.init(VOCAB, config, key=jax.random.key(0))


@eqx.filter_jit
def logits(model):
    return model(IDS, attn_mask=AttentionMask.causal()).array


@eqx.filter_jit
def gradient(trained, rest):
    """The gradient of a loss of the model that consists of both."""

    def loss(trained):
        return jnp.mean(logits(eqx.combine(trained, rest)) ** 2)

    return eqx.filter_grad(loss)(trained)


def ours(name, **options):
    """Our LoRA on every linear layer, after training."""
    net = Net(model_of(name), key=jax.random.key(2)).freeze()
    return perturb(net.lora(rank=RANK, alpha=ALPHA, **options).module, 0.1)


def assert_close(values, expected, tolerance=1e-5):
    largest = float(np.max(np.abs(expected)))
    assert largest > 0
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("name", CASES)
def test_identity_and_merging(name):
    model = model_of(name)
    adapted, before = ours(name), logits(model)
    assert_close(logits(Net(model).lora(rank=RANK).module), before)
    assert len(list(adapted_layers(adapted))) == {"Llama": 8, "GPT-2": 4}.get(name, 22)
    after = logits(adapted)
    assert np.max(np.abs(after - before)) > 0.1 * np.max(np.abs(before))
    assert_close(logits(merge_lora(adapted)), after)


def theirs_with_the_factors_of(adapted, name, **options):
    """Levanter's LoRA on the same layers, with the same factors."""
    config = LoraConfig(r=RANK, alpha=ALPHA, **options)
    theirs = loraize(model_of(name), config, jax.random.key(3))
    layers = dict(adapted_layers(adapted))

    def copy(path, lora):
        A, B = lora.lora_A, lora.lora_B
        stack = [axis for axis in A.weight.axes if axis.name in ("layer", "layers")]
        arrays = layers[path].lora_A, layers[path].lora_B
        A_axes = (*stack, A.Out, *hax.axis.ensure_tuple(A.In))
        B_axes = (*stack, *hax.axis.ensure_tuple(B.Out), B.In)
        named = [
            hax.named(array.reshape([axis.size for axis in axes]), axes).rearrange(old.weight.axes)
            for array, axes, old in zip(arrays, (A_axes, B_axes), (A, B), strict=True)
        ]
        return eqx.tree_at(lambda m: (m.lora_A.weight, m.lora_B.weight), lora, tuple(named))

    for path, module in modules_by_path(theirs).items():
        if path.endswith("/lora") or path == "lora":
            new = copy(path.rpartition("/lora")[0], module)
            theirs = eqx.tree_at(functools.partial(at, path), theirs, new)
    return theirs, config


def at(path, model):
    return modules_by_path(model)[path]


@pytest.mark.parametrize("name", CASES)
def test_levanters_lora_with_the_same_factors(name, tmp_path):
    adapted, case = ours(name), CASES[name]
    theirs, _ = theirs_with_the_factors_of(adapted, name)
    assert_close(logits(adapted), logits(theirs))
    trained, rest = eqx.partition(adapted, lora_trainable_filter(adapted))
    mine = eqx.combine(gradient(trained, rest), rest)
    peers = gradient(*eqx.partition(theirs, eqx.is_inexact_array))
    # Our gradient, as a file of PEFT, has the names and the layout of Levanter's.
    save_peft(mine, tmp_path, rename=case.names)
    files = load_file(tmp_path / "adapter_model.safetensors")
    expected = lora_state_dict(peers, case.prefix)
    assert files.keys() == expected.keys()
    for key, value in files.items():
        assert_close(value, expected[key])


@pytest.mark.parametrize("name", CASES)
def test_files_of_peft_are_levanters(name, tmp_path):
    case = CASES[name]
    adapted = ours(name, target=case.targets)
    theirs, config = theirs_with_the_factors_of(adapted, name, target_modules=case.targets)
    save_peft_pretrained(theirs, config, "base", str(tmp_path / "theirs"), prefix=case.prefix)
    save_peft(adapted, tmp_path / "ours", rename=case.names)
    files, expected = (
        load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs")
    )
    assert files.keys() == expected.keys()
    for key, value in files.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    settings, peers = (
        json.loads((tmp_path / side / "adapter_config.json").read_text())
        for side in ("ours", "theirs")
    )
    for setting in ("peft_type", "r", "lora_alpha", "fan_in_fan_out"):
        assert settings[setting] == peers[setting]
    for side in ("ours", "theirs"):
        loaded = load_peft(model_of(name), tmp_path / side, rename=case.paths)
        assert eqx.tree_equal(loaded, adapted)


def test_a_tied_embedding_is_tied_in_the_file_as_well(tmp_path):
    config = LlamaConfig(**LLAMA, tie_word_embeddings=True)
    model = config.model_type.init(VOCAB, config, key=jax.random.key(0))
    net = Net(model).lora(rank=RANK, wrapper="lora-embedding", target="token_embeddings")
    adapted = perturb(net.module)
    assert_close(logits(merge_lora(adapted)), logits(adapted))
    names = {"^embeddings/token_embeddings$": "model/embed_tokens"}
    save_peft(adapted, tmp_path, rename=names)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["ensure_weight_tying"]
    paths = {"^model/embed_tokens$": "embeddings/token_embeddings"}
    assert eqx.tree_equal(load_peft(model, tmp_path, rename=paths), adapted)
