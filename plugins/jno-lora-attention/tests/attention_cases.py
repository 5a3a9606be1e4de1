"""Attention in NumPy and float64, as the papers define it (arXiv:1706.03762, section 3.2.2)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# The letters of the projections, and the fields of Equinox's layer.
LETTERS = {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "output_proj"}


class Projection(NamedTuple):
    """`W x + b`."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        return np.stack([self.weight @ token + self.bias for token in tokens])


class Prefix(NamedTuple):
    """Keys `(tokens, heads, qk)`, values `(tokens, heads, vo)` and a gate for each head."""

    keys: np.ndarray
    values: np.ndarray
    gate: np.ndarray


def float64(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def projections_of(layer: Any) -> dict[str, Projection]:
    """The four projections of an Equinox layer by letter, with zeros for a missing bias."""
    linears = {letter: getattr(layer, field) for letter, field in LETTERS.items()}
    biases = {p: np.zeros(len(m.weight)) if m.bias is None else m.bias for p, m in linears.items()}
    return {p: Projection(float64(m.weight), float64(biases[p])) for p, m in linears.items()}


def with_low_rank(
    projections: Mapping[str, Projection], A: Mapping[str, Any], B: Mapping[str, Any], scale: float
) -> dict[str, Projection]:
    """LoRA (arXiv:2106.09685): `W + s B A` for the letters that `A` and `B` have."""
    return {
        p: Projection(W + scale * float64(B[p]) @ float64(A[p]), b) if p in A else Projection(W, b)
        for p, (W, b) in projections.items()
    }


def scaled_projections(
    projections: Mapping[str, Projection], scales: Mapping[str, Any]
) -> dict[str, Projection]:
    """The layer that computes what IA3 (arXiv:2205.05638) does to activations, `l * (W x + b)`."""
    return {
        p: Projection(np.diag(float64(scales[p])) @ W, float64(scales[p]) * b)
        if p in scales
        else Projection(W, b)
        for p, (W, b) in projections.items()
    }


def multihead(
    projections: Mapping[str, Projection],
    num_heads: int,
    inputs: tuple[Any, Any, Any],
    mask: Any = None,
    *,
    scales: Mapping[str, Any] | None = None,
    prefix: Prefix | None = None,
    process: Callable[..., Any] | None = None,
) -> np.ndarray:
    """The output for query, key and value, each `(tokens, size)`.

    **Arguments:**

    - `mask`: `(queries, tokens)` or `(heads, queries, tokens)`; what is false is not seen.
    - `scales`: IA3's factors of the activations, by letter.
    - `prefix`: adds `g softmax(q P_k^T / sqrt(d)) P_v` to each head (arXiv:2303.16199).
    - `process`: what happens to queries, keys and values `(tokens, heads, size)`, scaled already.
    """
    split = []
    for letter, tokens in zip("qkv", inputs, strict=True):
        projected = projections[letter](float64(tokens))
        projected = projected * float64((scales or {}).get(letter, 1.0))
        split.append(projected.reshape(len(projected), num_heads, -1))
    queries, keys, values = split if process is None else process(*split)
    seen = np.ones((num_heads, len(queries), len(keys)), bool)
    if mask is not None:
        seen &= np.asarray(mask)
    heads = np.empty((len(queries), num_heads, values.shape[2]))
    for h in range(num_heads):
        for i, query in enumerate(queries[:, h]):
            heads[i, h] = attended(query, keys[seen[h, i], h], values[seen[h, i], h])
            if prefix is not None:
                more = attended(query, prefix.keys[:, h], prefix.values[:, h])
                heads[i, h] += prefix.gate[h] * more
    return projections["o"](heads.reshape(len(queries), -1))


def attended(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`softmax(q K^T / sqrt(d)) V` for one query, on the tokens that it sees."""
    logits = keys @ query / np.sqrt(len(query))
    weights = np.exp(logits - logits.max())
    return weights @ values / weights.sum()


def random_layer(cls: Any = eqx.nn.MultiheadAttention, **sizes: Any) -> Any:
    """A layer in float64 (where that is enabled), its weights and biases NumPy's numbers."""
    random = np.random.default_rng(1)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(0.6 * random.normal(size=leaf.shape))

    # Only its shapes are computed, so nothing is compiled.
    return jax.tree.map(fill, eqx.filter_eval_shape(lambda: cls(**sizes, key=jax.random.key(0))))


def flat(wrapper: Any) -> dict[str, Any]:
    """The arrays that train, by names such as `gate` and `lora_A/q`."""
    fields = {name: getattr(wrapper, name) for name in type(wrapper).adapter_fields}
    return {
        "/".join([name, *(entry.key for entry in path)]): array
        for name, field in fields.items()
        for path, array in jax.tree_util.tree_leaves_with_path(field)
    }
