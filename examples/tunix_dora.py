"""Tunix's trainer fine-tunes a Llama with DoRA and PiSSA, which Tunix does not have.

`Adapted` is a Flax module around Tunix's model. Its trained arrays are `nnx.LoRAParam`s. Tunix's
`PeftTrainer` trains and saves the `LoRAParam`s of any module, so nothing in Tunix is patched.

    pip install "jno-lora[arrays,zoo]" google-tunix
    python examples/tunix_dora.py

It needs no network, and takes a minute on two cores, less with `--quick`.
"""

import sys
import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import qwix
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer, utils

from jno.lora import Net
from jno_lora_arrays import declare, infer, plain, through

TOKENS, LENGTH, BATCH, RANK = 32, 16, 32, 4
# Attention and the network after it, in Tunix's names.
TARGET = "(q|k|v|o|gate|up|down)_proj"
METHODS = ("LoRA of Tunix", "lora", "dora", "pissa")


class Adapted(nnx.Module):
    """A Flax model with adapters of jno-lora, whose trained arrays Tunix takes for its LoRA."""

    def __init__(self, model, *inputs, rank, **options):
        graph, params, state = nnx.split(model, nnx.Param, ...)

        def apply(params, state, *inputs, **named):
            return nnx.merge(graph, params, state, copy=True)(*inputs, **named)

        axes = infer(apply, params, state, *inputs)
        net = Net(declare(params, axes)).freeze().lora(rank, **options)
        trained, frozen = net.partition()
        leaves, structure = jax.tree_util.tree_flatten_with_path(trained)
        names = [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in leaves]
        arrays, static = eqx.partition((frozen, state), eqx.is_array)
        arrays, layout = jax.tree.flatten(arrays)

        def restored(adapters, arrays):
            trained = structure.unflatten([adapters[name][...] for name in names])
            arrays = layout.unflatten([array[...] for array in arrays])
            frozen, state = eqx.combine(arrays, static)
            return eqx.combine(trained, frozen), state

        # Tunix trains, saves and restores these alone.
        self.adapters = nnx.Dict(
            {n: nnx.LoRAParam(x) for n, (_, x) in zip(names, leaves, strict=True)}
        )
        self.arrays = nnx.List([nnx.Variable(array) for array in arrays])
        self.graph, self.apply, self.restored = graph, apply, restored
        self.config = model.config  # Tunix's sampler reads it

    def __call__(self, *inputs, **named):
        """The outputs of the model with its adapters."""
        params, state = self.restored(self.adapters, self.arrays)
        return through(self.apply)(params, state, *inputs, **named)

    def merged(self):
        """The model, of its own class, with the adapters folded in."""
        params, state = self.restored(self.adapters, self.arrays)
        return nnx.merge(self.graph, plain(params), state, copy=True)


def new_model():
    """A small Llama with random weights."""
    config = llama.ModelConfig(
        num_layers=2, vocab_size=TOKENS, embed_dim=32, hidden_dim=64, num_heads=4, head_dim=8,
        num_kv_heads=2, rope_theta=10_000, norm_eps=1e-5,
    )  # fmt: skip
    return llama.Llama3(config, rngs=nnx.Rngs(0))


def sequences(steps, seed, number):
    """Batches of tokens that count in one of these steps: 3, 8, 13, ..."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        first, step = rng.integers(TOKENS, size=(BATCH, 1)), rng.choice(steps, (BATCH, 1))
        tokens = (first + step * np.arange(LENGTH)) % TOKENS
        yield peft_trainer.TrainingInput(input_tokens=tokens, input_mask=tokens >= 0)


def model_inputs(batch):
    """The arguments of Tunix's loss."""
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(batch.input_mask),
        "attention_mask": utils.make_causal_attn_mask(batch.input_mask),
    }


def arguments_of(batch):
    """The arguments of a model: tokens, positions, no cache, and the mask."""
    inputs = model_inputs(batch)
    return inputs["input_tokens"], inputs["positions"], None, inputs["attention_mask"]


def loss_of(model, batch):
    """The mean cross-entropy of the next token."""
    logits, _ = model(*arguments_of(batch))
    losses = optax.softmax_cross_entropy_with_integer_labels
    return float(losses(logits[:, :-1], jnp.asarray(batch.input_tokens[:, 1:])).mean())


def trainer_for(model, rate, folder=None):
    """Tunix's trainer, as for any of its models."""
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1000,
        checkpoint_root_directory=folder,
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=50),
    )
    trainer = peft_trainer.PeftTrainer(model, optax.adam(rate), config)
    return trainer.with_gen_model_input_fn(model_inputs)


def adapted_by(method, model, inputs):
    """The model with Tunix's LoRA, which is Qwix's, or with a method of the zoo."""
    if method == "LoRA of Tunix":
        provider = qwix.LoraProvider(module_path=f".*{TARGET}", rank=RANK, alpha=2.0 * RANK)
        return qwix.apply_lora_to_model(model, provider, *inputs, rngs=nnx.Rngs(1))
    return Adapted(model, *inputs, rank=RANK, alpha=2.0 * RANK, target=TARGET, wrapper=method)


def main(arguments=()):
    """Pretrain, adapt by each method, restore and merge. Returns the losses."""
    steps = 5 if "--quick" in arguments else 200
    model = new_model()
    trainer_for(model, 3e-3).train(sequences((1, 2, 3), 0, steps))
    unseen = next(sequences((5, 7), 2, 1))
    inputs = arguments_of(unseen)
    losses = {"untouched": loss_of(model, unseen)}
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            adapted = adapted_by(method, nnx.clone(model), inputs)
            trainer_for(adapted, 1e-2, folder).train(sequences((5, 7), 1, steps))
            # A new trainer goes on from the last checkpoint.
            restored = adapted_by(method, nnx.clone(model), inputs)
            step = trainer_for(restored, 1e-2, folder).train_steps
        models = {method: adapted, f"{method}, restored at step {step}": restored}
        if isinstance(adapted, Adapted):
            models[f"{method}, merged into a {type(model).__name__}"] = adapted.merged()
        losses |= {name: loss_of(m, unseen) for name, m in models.items()}
        number = sum(x.size for x in jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam)))
        print(f"{method}: {number:,} parameters train")
    for name, loss in losses.items():
        print(f"loss {loss:.3f}: {name}")
    return losses


if __name__ == "__main__":
    main(sys.argv[1:])
