"""PEANuT: an update that a small network computes from the layer's weight."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jno.lora import LowRankForm
from jno_lora_zoo import LinearLayer, Matrix, Method, Update, cited

from ._routed import checked_count


def _relu(x: Array) -> Array:
    # Not `jax.nn.relu` (or `relu6`): in `jet`, a tracer leaks from its custom derivative.
    return jnp.where(x <= 0, jnp.zeros_like(x), x)  # NaN stays NaN


# By their names in Transformers. Files record the index in this list, so only append.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": _relu,
    "relu2": lambda x: jnp.square(_relu(x)),
    "relu6": lambda x: jnp.minimum(_relu(x), 6),
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


class PEANuT(Method):
    """PEANuT: `B` as in LoRA, and a network that computes the second factor from the weight.

    Law: `W' = W + (alpha / r) B f(A W)`. `f` acts on each column: first the activation, then
    `depth` layers `h -> act(E_i h)`, then `depth` layers `h -> act(D_i h) + skipped`, which add the
    inputs of the layers `E` in reverse order. `A`, `E_i` and `D_i` start as linear layers, and
    `B = 0`. `2 r out + 2 depth r^2` parameters train. The rank may exceed the layer's sizes.

    The update depends on the weight and not on the layer's input, so the adapter can be merged.

    - `depth`: the number of layers `E_i`, and of layers `D_i`.
    - `activation`: its name in Transformers, which files record as the length of an array.

    **Raises:** `ValueError` for an unknown activation or a depth that is not a whole number.

    Paper: Zhong et al., "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers",
    arXiv:2410.01870. PEFT's `scaling` is `alpha / r`.
    """

    adapter_fields = ("A", "B", "encoders", "decoders")
    variant = "peanut"
    about = cited(
        "2410.01870",
        family="low rank",
        formula="2 r out + 2 depth r^2",
        cost="reads the whole weight at every call, to compute a factor: merge before decoding.",
    )
    _rank_limits = ()

    A: Float[Array, "r out"]
    B: Float[Array, "out r"]
    encoders: Float[Array, "depth r r"]
    decoders: Float[Array, "depth r r"]
    # As many zeros as the index in `ACTIVATIONS`, from 1, because `options_of` only gets shapes.
    activation: Int[Array, " activation"]

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        depth: int = 0,
        activation: str = "relu",
    ) -> dict[str, Array]:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}"
            )
        count, outputs = checked_count("depth", depth, 0), len(W)
        keys = jax.random.split(key, 3)
        place = list(ACTIVATIONS).index(activation)
        return {
            "A": _uniform(keys[0], (r, outputs), dtype),
            "B": jnp.zeros((outputs, r), dtype),
            "encoders": _uniform(keys[1], (count, r, r), dtype),
            "decoders": _uniform(keys[2], (count, r, r), dtype),
            "activation": jnp.zeros(place + 1, jnp.int8),
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, int | str]:
        name = list(ACTIVATIONS)[state["activation"].shape[0] - 1]
        return {"depth": state["encoders"].shape[0], "activation": name}

    def factors(self, W: Matrix) -> tuple[Float[Array, "out r"], Float[Array, "r in"]]:
        """The factors of the update, in the dtype of `W`."""
        activate = list(ACTIVATIONS.values())[self.activation.shape[0] - 1]
        hidden, skipped = activate(self.A.astype(W.dtype) @ W), []
        for encoder in self.encoders:
            skipped.append(hidden)
            hidden = activate(encoder.astype(W.dtype) @ hidden)
        for decoder in self.decoders:
            hidden = activate(decoder.astype(W.dtype) @ hidden) + skipped.pop()
        return self.alpha / self.rank * self.B.astype(W.dtype), hidden

    def law(self, W: Matrix) -> Matrix:
        B, hidden = self.factors(W)
        return W + B @ hidden

    def low_rank_form(self) -> LowRankForm:
        B, hidden = self.factors(self.matrix(self.base))
        return LowRankForm(hidden, B)

    def forward(self, x: ArrayLike) -> Array:
        B, hidden = self.factors(self.matrix(self.base))

        def times(v: Array) -> Array:
            return B.astype(v.dtype) @ (hidden.astype(v.dtype) @ v)

        return self.plus(x, Update(lambda: B @ hidden, times, lambda i: B @ hidden[:, i]))


class PEANuTLinear(PEANuT, LinearLayer):
    __doc__ = PEANuT.__doc__


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """The initial weights of a linear layer, for a shape that ends in `in`."""
    bound = 1 / math.sqrt(shape[-1])
    return jax.random.uniform(key, shape, dtype, -bound, bound)
