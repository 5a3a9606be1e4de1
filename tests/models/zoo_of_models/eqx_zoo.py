"""Language models: eqx-zoo. Its encoder with the real weights of all-MiniLM-L6-v2."""

import dataclasses
import functools
import importlib.resources
import tempfile
import zipfile
from typing import Any

import jax.numpy as jnp
from eqx_zoo import CausalLM, Config, Encoder

from .._model import Model, tokens

_QWEN3 = Config(
    architecture="Qwen3ForCausalLM",
    vocab_size=19,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    attention_bias=False,
    qk_norm=True,
    rope_scaling=None,
)
_LLAMA = dataclasses.replace(
    _QWEN3, architecture="LlamaForCausalLM", qk_norm=False, tie_word_embeddings=False
)
_MOE = dataclasses.replace(
    _QWEN3,
    architecture="Qwen3MoeForCausalLM",
    tie_word_embeddings=False,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=10,
    norm_topk_prob=True,
    moe_layers=(0,),
)


def _logits(model: Any, ids: Any) -> Any:
    return model(ids)[0]


@functools.cache
def _minilm() -> Any:
    # The package's own code prints, and writes to the user's cache: only its archive is read.
    archive = importlib.resources.files("all_minilm_l6_v2") / "model.zip"
    with (
        tempfile.TemporaryDirectory() as folder,
        importlib.resources.as_file(archive) as path,
        zipfile.ZipFile(path) as packed,
    ):
        packed.extractall(folder)
        return Encoder.from_pretrained(folder)


def _sentence(key: Any) -> tuple[Any, ...]:
    # [CLS] "the quick brown fox jumps over the lazy dog" [SEP] and a pad, by MiniLM's vocabulary.
    ids = [101, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 102, 0]
    return jnp.array(ids), jnp.array([1] * 11 + [0])


MODELS = (
    Model(
        "eqx_zoo-qwen3",
        lambda key: CausalLM(_QWEN3, key=key),
        tokens(5, 19),
        _logits,
        note="the embedding is the output projection too, read as `.weight`",
        layers=7,
    ),
    Model("eqx_zoo-llama", lambda key: CausalLM(_LLAMA, key=key), tokens(5, 19), _logits, layers=8),
    Model(
        "eqx_zoo-qwen3-moe",
        lambda key: CausalLM(_MOE, key=key),
        tokens(5, 19),
        _logits,
        note="stacked experts, read as `.weight`; the gate's `.out_features` is read",
        layers=9,
    ),
    Model(
        "eqx_zoo-minilm",
        lambda key: _minilm(),
        _sentence,
        lambda model, ids, mask: model.embed(ids, mask),
        note="real weights, 22.6M parameters",
        layers=36,
    ),
)
