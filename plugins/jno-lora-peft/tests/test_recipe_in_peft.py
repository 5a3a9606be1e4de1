"""PEFT on Torch reads what the recipe of docs/llm.md writes: `make test-peft`, on Python 3.12."""

import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.language_models import error, our_logits, peft, quiet, their_logits, transformers
from tests.models._example import load

from jno_lora_peft import save_peft

LAYERS = 2
SIZES = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


@pytest.fixture
def example(monkeypatch):
    module = load("llm_finetune")
    for name, value in {"LENGTH": 16, "BATCH": 4, "EVERY": 8}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_the_recipes_file_computes_the_same_in_peft(example, tmp_path):
    """The recipe trains over bfloat16; both sides then compute with these weights in float32."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
        theirs = theirs.bfloat16().float()  # weights that both precisions hold
        theirs.save_pretrained(folder)
        model = example.CausalLM.from_pretrained(folder, dtype=jnp.bfloat16)
    held_out, batches = np.split(example.load_text(), [2])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        adapted, run = example.fine_tune(model, batches, held_out, tmp_path / "run", 16, 16)
    assert run.step == 16
    save_peft(adapted, tmp_path / "adapters")

    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, adapted)
    before = their_logits(theirs)
    with quiet():
        found = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters").eval()
    layers = [m for m in found.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert len(layers) == 7 * LAYERS
    assert error(our_logits(wide), their_logits(found)) < 1e-5
    assert error(before, their_logits(found)) > 1e-2
