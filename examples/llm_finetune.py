"""Fine-tune a Llama from its first step to a file for PEFT: a recipe to copy.

All linear layers of the blocks get LoRA, in bfloat16, with LoRA+ and weight decay by role. The loop
accumulates gradients, scans and rematerialises the blocks, evaluates, stops early, keeps the best
adapters, and resumes exactly after a kill. The merged model generates with a cache.

    pip install "jno-lora[zoo,train,peft]" eqx-zoo
    python examples/llm_finetune.py

It needs Python 3.12 or newer, but not a network. The model is eqx-zoo's Llama, small and random, so
the text that it writes means nothing. `CausalLM.from_pretrained` loads a pretrained model for the
same recipe. The text is Python's language reference, byte by byte. It takes three minutes on two
cores, and one minute with `--quick`.
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

from jno.lora import Net, lora_param_labels, merge_lora
from jno_lora_peft import save_peft
from jno_lora_train import ScannedLayers, Trainer

try:
    from eqx_zoo import CausalLM, Config, generate
except ImportError as err:
    raise ImportError(
        "examples/llm_finetune.py needs eqx-zoo: pip install eqx-zoo (Python 3.12)"
    ) from err

STEPS, EVERY = 480, 40  # batches in all, and between evaluations
PATIENCE = 3  # evaluations without progress
BATCH, LENGTH, ACCUMULATE = 8, 96, 4  # rows, tokens in a row, batches in a step of the optimiser
LLAMA = Config(
    architecture="LlamaForCausalLM",
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    attention_bias=False,
    qk_norm=False,
    rope_scaling=None,
)


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


def blocks(model):
    """The list of blocks in the model."""
    return model.model.layers


def fine_tune(model, batches, held_out, path, steps=STEPS, until=STEPS):
    """Train adapters for `steps` batches, from the run in `path` if any; stop after `until`."""
    model = eqx.tree_at(blocks, model, [ScannedLayers(blocks(model))])
    net = Net(model).freeze().lora(rank=8, alpha=16, target="all-linear")
    trainable, frozen = net.partition()

    rate = optax.cosine_decay_schedule(2e-3, steps // ACCUMULATE)
    faster = optax.cosine_decay_schedule(16 * 2e-3, steps // ACCUMULATE)  # LoRA+
    roles = {"lora_A": optax.adamw(rate, weight_decay=0.01), "lora_B": optax.adam(faster)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.multi_transform(roles, lora_param_labels)
    )
    trainer = Trainer(loss, optax.MultiSteps(optimizer, ACCUMULATE))

    run = trainer.start(trainable)
    if path.exists():
        run = run.load(path)
    while run.step < until and run.waited < PATIENCE:
        run, value = trainer.step(run, frozen, batches[run.step % len(batches)])
        if run.step % EVERY == 0:
            model = eqx.combine(run.trainable, frozen)
            run = run.evaluated(trainer.evaluate(model, held_out))
            run.save(path)
            print(f"step {run.step:4}: loss {value:.3f}, best on other text {run.best_loss:.3f}")
    net.update(run.best)
    return eqx.tree_at(blocks, net.module, blocks(net.module)[0].unstacked()), run


def main(arguments=()):
    """Run the example; returns the printed values."""
    steps = 80 if "--quick" in arguments else STEPS
    model = CausalLM(LLAMA, key=jax.random.key(0), dtype=jnp.bfloat16)
    held_out, batches = np.split(load_text(), [8])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = model, batches, held_out, folder / "run"
        fine_tune(*data, steps, until=steps // 2 + 3)  # killed here, three batches after a save
        adapted, run = fine_tune(*data, steps, until=steps)
        save_peft(adapted, folder / "adapters")
        files = sorted(file.name for file in (folder / "adapters").iterdir())
    plain = merge_lora(adapted)
    prompt = jnp.asarray(list(b"The following "), jnp.int32)
    answer = bytes(generate(plain, prompt, 60).astype("uint8").tolist())
    print(f"\nfor PEFT: {', '.join(files)}\nThe following {answer.decode(errors='replace')!r}")
    return {"adapted": adapted, "plain": plain, "run": run, "answer": answer, "files": files}


if __name__ == "__main__":
    main(sys.argv[1:])
