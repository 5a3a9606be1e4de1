"""Fine-tune a quantised language model: QLoRA from the first step to a merged model.

The weights become nf4 codes. All linear layers get LoRA, which starts with the rounding errors of
the codes (LoftQ), and only LoRA trains. The base is saved once as codes, and the adapters beside
it. A second program loads both without the full model, and merges them into plain layers.

    pip install "jno-lora[quantized,zoo]" eqx-zoo optax
    python examples/quantized_llm.py

It needs Python 3.12 or newer, but not a network. The model is eqx-zoo's Qwen3, small and random.
`CausalLM.from_pretrained` loads a pretrained model for the same recipe. The text is Python's
language reference, byte by byte. It takes two minutes on two cores, one with `--quick`.
"""

import pathlib
import sys
import tempfile
from pydoc_data.topics import topics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jno.lora import (
    apply_lora,
    load_adapters,
    lora_trainable_filter,
    merge_lora,
    save_adapters,
    unwrap_lora,
)
from jno_lora_quantized import (
    dequantize,
    load_quantized,
    loftq,
    quantization_errors,
    quantize,
    save_quantized,
)

try:
    from eqx_zoo import CausalLM, Config
except ImportError as err:
    raise ImportError(
        "examples/quantized_llm.py needs eqx-zoo: pip install eqx-zoo (Python 3.12)"
    ) from err

STEPS, BATCH, LENGTH = 200, 8, 64
QWEN3 = Config(
    architecture="Qwen3ForCausalLM",
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    attention_bias=False,
    qk_norm=True,
    rope_scaling=None,
)


def make_model():
    """The full model, in bfloat16."""
    return CausalLM(QWEN3, key=jax.random.key(0), dtype=jnp.bfloat16)


def load_text():
    """Cut the language reference into batches of rows of bytes, in random order."""
    ids = np.frombuffer("".join(topics.values()).encode(), np.uint8).astype(np.int32)
    rows = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    rows = np.random.default_rng(0).permutation(rows)
    return rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, LENGTH + 1)


def loss(model, rows):
    """The mean loss of predicting each token from the tokens before it."""
    logits, _ = jax.vmap(model)(rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype("float32"), rows[:, 1:])
    return losses.mean()


def train(model, batches):
    """Train the adapters of a model, one step for each batch."""
    trainable, frozen = eqx.partition(model, lora_trainable_filter(model))
    optimizer = optax.adam(5e-3)
    state = optimizer.init(trainable)

    @eqx.filter_jit
    def step(trainable, frozen, state, rows):
        loss_of = jax.value_and_grad(lambda t: loss(eqx.combine(t, frozen), rows))
        value, gradient = loss_of(trainable)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(trainable, updates), state, value

    values = []
    for rows in batches:
        trainable, state, value = step(trainable, frozen, state, rows)
        values.append(float(value))
    return eqx.combine(trainable, frozen), values


def nbytes(tree):
    """The bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def memory(model, adapted):
    """The bytes of the arrays in training: of all parameters, with LoRA, and with LoRA on codes."""
    adapters = eqx.filter(adapted, lora_trainable_filter(adapted))
    size, beside = nbytes(model) // 2, 4 * nbytes(adapters)
    return {
        "all parameters": (2 * size, 14 * size),  # gradients, float32 weights, two moments
        "LoRA, bfloat16 base": (2 * size, beside),  # the adapters, gradients and two moments
        "LoRA, nf4 base": (nbytes(unwrap_lora(adapted)), beside),
    }


def main(arguments=()):
    """Run the example; returns the printed values."""
    steps = 40 if "--quick" in arguments else STEPS
    model, text = make_model(), load_text()
    adapted = loftq(apply_lora(model, 8, 16.0, key=jax.random.key(1)), "nf4", iterations=3)
    blocks = model.model.layers
    plain = quantization_errors(blocks, quantize(blocks))
    started = quantization_errors(blocks, adapted.model.layers)
    print(f"error of the blocks: {plain.relative:.4f} in codes, {started.relative:.4f} with LoftQ")

    table = memory(model, adapted)
    print(f"\n{'trained':22}{'base':>10}{'beside it':>12}   bytes")
    for name, (base, beside) in table.items():
        print(f"{name:22}{base:>10,}{beside:>12,}")

    adapted, values = train(adapted, text[1 : steps + 1])
    held_out = float(loss(adapted, text[0]))
    print(
        f"\nloss {values[0]:.3f} at first, {values[-1]:.3f} at last, {held_out:.3f} on other text"
    )

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_quantized(unwrap_lora(adapted), folder / "base.safetensors")
        save_adapters(adapted, folder / "adapters.safetensors")
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        # A second program does the same: it never makes the full model.
        base = load_quantized(eqx.filter_eval_shape(make_model), folder / "base.safetensors")
        loaded = load_adapters(base, folder / "adapters.safetensors")
    merged = merge_lora(dequantize(loaded))
    after = float(loss(merged, text[0]))
    print(f"loaded and merged: {after:.3f}; files: {sizes}")
    return {
        "adapted": adapted,
        "loaded": loaded,
        "merged": merged,
        "losses": [*values, held_out, after],
        "errors": (plain, started),
        "memory": table,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
