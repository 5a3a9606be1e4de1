"""A language model: adapters by target, a file of PEFT out and in, many users in one program.

pip install "jno-lora[zoo,peft,bank,proof]" optax
python examples/first_language_model.py
"""

import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jno.lora import Net, extract_adapters
from jno_lora_bank import AdapterBank
from jno_lora_peft import load_peft, save_peft


class Block(eqx.Module):
    """Causal attention and a gated MLP, with the names that checkpoints of Llama have."""

    q_proj: eqx.nn.Linear
    k_proj: eqx.nn.Linear
    v_proj: eqx.nn.Linear
    o_proj: eqx.nn.Linear
    gate_proj: eqx.nn.Linear
    up_proj: eqx.nn.Linear
    down_proj: eqx.nn.Linear
    norm: eqx.nn.RMSNorm

    def __init__(self, size, *, key):
        keys = iter(jax.random.split(key, 7))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, eqx.nn.Linear(size, size, use_bias=False, key=next(keys)))
        for name in ("gate_proj", "up_proj"):
            setattr(self, name, eqx.nn.Linear(size, 2 * size, use_bias=False, key=next(keys)))
        self.down_proj = eqx.nn.Linear(2 * size, size, use_bias=False, key=next(keys))
        self.norm = eqx.nn.RMSNorm(size)

    def __call__(self, x):
        h = jax.vmap(self.norm)(x)
        q, k, v = (jax.vmap(layer)(h) for layer in (self.q_proj, self.k_proj, self.v_proj))
        scores = jnp.where(jnp.tri(len(x), dtype=bool), q @ k.T / x.shape[-1] ** 0.5, -jnp.inf)
        x = x + jax.vmap(self.o_proj)(jax.nn.softmax(scores) @ v)
        return x + jax.vmap(self.feed_forward)(jax.vmap(self.norm)(x))

    def feed_forward(self, h):
        """The gated MLP of one token."""
        return self.down_proj(jax.nn.silu(self.gate_proj(h)) * self.up_proj(h))


class Decoder(eqx.Module):
    """Logits `(length, words)` of tokens `(length,)`."""

    embed: eqx.nn.Embedding
    layers: list[Block]
    head: eqx.nn.Linear

    def __init__(self, words, size, depth, *, key):
        first, last, *keys = jax.random.split(key, depth + 2)
        self.embed = eqx.nn.Embedding(words, size, key=first)
        self.layers = [Block(size, key=key) for key in keys]
        self.head = eqx.nn.Linear(size, words, use_bias=False, key=last)

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.head)(x)


def finetune(net, texts, steps=60):
    """Train the adapters to predict the next word of `texts` `(number, length)`; print the loss."""
    trainable, frozen = net.partition()
    optimiser = optax.adam(1e-2)

    def loss(trainable):
        logits = jax.vmap(eqx.combine(trainable, frozen))(texts[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, texts[:, 1:]).mean()

    @eqx.filter_jit
    def step(trainable, state):
        value, gradient = eqx.filter_value_and_grad(loss)(trainable)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(trainable, updates), state, value

    state, losses = optimiser.init(trainable), []
    for _ in range(steps):
        trainable, state, value = step(trainable, state)
        losses.append(value)
    print(f"loss {losses[0]:.1f} to {losses[-1]:.1f}")
    return net.update(trainable)


def texts_that_count(by):
    """Eight texts of 17 words: each word is the word before plus `by`."""
    return (jnp.arange(8)[:, None] * 31 + by * jnp.arange(17)) % 256


def main():
    """Print the adapters, and the difference of the bank's logits to each user's model."""
    # Your checkpoint, such as `eqx_zoo.CausalLM.from_pretrained(folder)`.
    model = Decoder(words=256, size=32, depth=4, key=jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 16), 0, 256)
    folder = tempfile.mkdtemp()
    bob = Net(model).freeze().lora(rank=4, target="down_proj")
    bob = finetune(bob, texts_that_count(by=2))

    net = Net(model).freeze().lora(rank=8, alpha=16, target="[qv]_proj")  # or "all-linear"
    net = finetune(net, texts_that_count(by=3))  # your loop: an Equinox partition, any optimiser
    save_peft(net, folder, proof=tokens)  # adapter_config.json, adapter_model.safetensors
    ada = load_peft(model, folder, prove=True)  # or "org/name"; raises if the adapters don't act
    users = {"ada": extract_adapters(ada), "bob": extract_adapters(bob.module)}
    bank = AdapterBank(model, users, slots=64)
    logits = bank.run(["ada", "bob", None], tokens)  # one program, a user for each text

    each = jnp.stack([user(text) for user, text in zip((net, bob, model), tokens, strict=True)])
    print(net.summary())
    difference = jnp.max(jnp.abs(logits - each)) / jnp.max(jnp.abs(each))
    print(f"largest difference to a model for each user: {difference:.0e} of the largest logit")
    return logits, each


if __name__ == "__main__":
    main()
