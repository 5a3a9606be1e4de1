"""Language models of Transformers with PEFT's adapters, and the same models in eqx-zoo."""

import importlib.util
import os
import sys
import tempfile
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .torch_side import moved, peft, quiet, torch

if importlib.util.find_spec("eqx_zoo") is None:
    message = "needs eqx-zoo, which `make test-peft` installs on Python 3.12"
    if os.environ.get("JNO_LORA_TEST_PEFT") and sys.version_info >= (3, 12):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

import transformers
from eqx_zoo import CausalLM

IDS = [1, 5, 3, 18, 40, 2]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def theirs(family, is_tied=True):
    """A model of Transformers, `"Llama"` or `"Qwen3"`, with weights that are always the same."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, tie_word_embeddings=is_tied)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    # Larger logits than at the start, so that an adapter is not all that there is to see.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    return model


def ours(family, is_tied=True):
    with tempfile.TemporaryDirectory() as folder, quiet():
        theirs(family, is_tied).save_pretrained(folder)
        return CausalLM.from_pretrained(folder)


def trained(config, family, is_tied=True):
    """The model of Transformers with an adapter of PEFT, all its parameters moved."""
    with quiet():
        adapted = peft.get_peft_model(theirs(family, is_tied), config)
    moved(adapted)
    return adapted.eval()


def loaded(folder, family, is_tied=True):
    """The model of Transformers with the adapter in `folder`, and what PEFT warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(theirs(family, is_tied), folder)
    return adapted.eval(), [str(warning.message) for warning in caught]


@torch.no_grad()
def their_logits(model):
    return model(torch.tensor([IDS])).logits[0].numpy()


def our_logits(model):
    """The logits of a model of eqx-zoo, which adds vectors to matrices."""
    with jax.numpy_rank_promotion("allow"):
        return np.asarray(eqx.filter_jit(model)(jnp.array(IDS))[0])


def reloaded(folder, family, is_tied=True):
    """The logits of the model of Transformers with the adapter in `folder`, which must be whole."""
    adapted, warned = loaded(folder, family, is_tied)
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    return their_logits(adapted)


def error(ours, theirs):
    """The largest difference, as a part of the largest logit."""
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
