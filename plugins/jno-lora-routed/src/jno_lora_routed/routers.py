"""Routers: functions of a layer's input that weight the slots of an adapter."""

import abc
import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jno.lora import WrapperError
from jno_lora_zoo import in_compute_dtype

_EPS = 1e-12  # of PEFT's Poly, beside a sum of sigmoids


class Router(eqx.Module):
    """A function from the features `(in,)` of one token to the weights `(slots,)`.

    An adapter has a slot for each of its low-rank products. The caller maps the layer over any
    leading axes of the features. All floating arrays of a router train, except the fields in
    `frozen`. Files contain every array but no static field, so the constructor must recreate the
    static fields.

    A subclass has the constructor `__init__(self, inputs, slots, *, key, dtype)`, and an adapter
    refers to it: `class MyHydra(HydraLoRA): router_class = MyRouter`. Further arguments need
    defaults, because an adapter passes only these. Every leaf must be an array, and numbers and
    functions static fields, so that a stack of layers can be scanned.
    `jno_lora_routed.testing.check_router` checks these promises.
    """

    frozen: ClassVar[tuple[str, ...]] = ()  # floating fields that do not train
    slots: eqx.AbstractVar[int]

    if TYPE_CHECKING:
        # How adapters call the class; every router has a constructor of this form.
        def __init__(
            self, inputs: int, slots: int, *, key: PRNGKeyArray, dtype: DTypeLike, **options: Any
        ): ...

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " slots"]:
        """The weights, in the dtype of `x`. `key` is for routers that draw random numbers."""

    def total(self) -> float | None:
        """The sum of the weights if it is the same for every input; by default `None`."""
        return None


class Softmax(Router):
    """`w = softmax(G x)`, with a trained gate `G`, `(slots, in)`, that starts as a linear layer.

    With `axes`, the weights are averaged over these named axes of `jax.vmap`: see `average_over`.
    """

    slots: int = eqx.field(static=True)
    weight: Float[Array, "slots in"]
    axes: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, inputs: int, slots: int, *, key: PRNGKeyArray, dtype: DTypeLike):
        bound = 1 / math.sqrt(inputs)
        self.slots, self.axes = slots, ()
        self.weight = jax.random.uniform(key, (slots, inputs), dtype, -bound, bound)

    def logits(self, x: Float[Array, " in"]) -> Float[Array, " slots"]:
        """`G x`, in float32 at least."""
        wide = in_compute_dtype(x)
        return wide @ self.weight.T.astype(wide.dtype)

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " slots"]:
        weights = jax.nn.softmax(self.logits(x))
        if self.axes:
            with named_axes(*self.axes):
                weights = jax.lax.pmean(weights, self.axes)
        return weights.astype(x.dtype)

    def total(self) -> float | None:
        return 1.0


class TopK(Softmax):
    """The softmax over the `k` largest entries of `G x`; all other slots have weight 0.

    `k` is an array, so that it is saved in files. Every slot is computed.
    """

    k: Int[Array, ""]

    def __init__(
        self, inputs: int, slots: int, *, key: PRNGKeyArray, dtype: DTypeLike, top_k: int = 2
    ):
        super().__init__(inputs, slots, key=key, dtype=dtype)
        self.k = checked_top_k(top_k, slots)

    def logits(self, x: Float[Array, " in"]) -> Float[Array, " slots"]:
        logits = super().logits(x)
        return jnp.where(among_largest(logits, self.k), logits, -jnp.inf)


class Prototypes(TopK):
    """Arrow: the softmax of `|p_i x| / temperature` over the `k` nearest prototypes `p_i`.

    Nothing trains. `arrow` computes the prototypes from adapters.
    """

    frozen = ("weight", "temperature")
    temperature: Float[Array, ""]

    def __init__(
        self,
        inputs: int,
        slots: int,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        top_k: int = 3,
        temperature: float = 1.0,
    ):
        super().__init__(inputs, slots, key=key, dtype=dtype, top_k=top_k)
        self.temperature = jnp.asarray(temperature, dtype)

    def logits(self, x: Float[Array, " in"]) -> Float[Array, " slots"]:
        similarity = jnp.abs(Softmax.logits(self, x))
        nearest = among_largest(similarity, self.k)
        return jnp.where(nearest, similarity / self.temperature.astype(similarity.dtype), -jnp.inf)


class Tasks(Router):
    """Poly: the weights of the slots for a task, `sigmoid(logits[task])` divided by their sum.

    The slots may form `splits` groups (multi-head routing), whose weights each sum to 1. The
    features are ignored. The weights are NaN for a task that does not exist. With `sampled`, a call
    with a key draws relaxed Bernoulli variables (temperature 1) instead of the sigmoid, for
    training.
    """

    slots: int = eqx.field(static=True)
    splits: int = eqx.field(static=True)
    sampled: bool = eqx.field(static=True)
    logits: Float[Array, "tasks slots"]
    task: Int[Array, ""]

    def __init__(
        self,
        inputs: int,
        slots: int,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        tasks: int = 1,
        splits: int = 1,
        sampled: bool = False,
    ):
        self.slots, self.splits, self.sampled = slots, splits, sampled
        self.logits = jax.random.uniform(key, (tasks, slots), dtype, -1e-3, 1e-3)
        self.task = jnp.zeros((), jnp.int32)

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " slots"]:
        count = self.logits.shape[0]
        exists = (self.task >= 0) & (self.task < count)
        logits = in_compute_dtype(self.logits[jnp.clip(self.task, 0, count - 1)])
        if self.sampled and key is not None:
            logits = logits + jax.random.logistic(key, logits.shape, logits.dtype)
        p = jax.nn.sigmoid(logits).reshape(self.splits, -1)
        weights = p / (jnp.sum(p, axis=1, keepdims=True) + _EPS)
        return jnp.where(exists, weights.reshape(-1), jnp.nan).astype(x.dtype)

    def total(self) -> float | None:
        return float(self.splits)


class Given(Router):
    """Given weights: `(slots,)`, or a row for each token of a named axis.

    With `axis`, `weights` is `(tokens, slots)`, and the layer must be called inside
    `jax.vmap(..., axis_name=axis)` over these tokens.
    """

    frozen = ("weights",)
    slots: int = eqx.field(static=True)
    weights: Float[Array, "*tokens slots"]
    axis: str | None = eqx.field(static=True)

    def __init__(self, inputs: int, slots: int, *, key: PRNGKeyArray, dtype: DTypeLike):
        self.slots, self.axis = slots, None
        self.weights = jnp.full(slots, 1 / slots, dtype)

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " slots"]:
        if self.weights.ndim == 1:
            return self.weights.astype(x.dtype)
        if self.axis is None:
            raise WrapperError("weights for each token need the name of the axis of the tokens")
        return self.weights[place_on(self.axis, len(self.weights))].astype(x.dtype)


@contextlib.contextmanager
def named_axes(*axes: str) -> Iterator[None]:
    """**Raises:** `WrapperError` instead of JAX's `NameError` for an unnamed axis."""
    try:
        yield
    except NameError as err:
        names = " and ".join(repr(axis) for axis in axes)
        raise WrapperError(
            f"the router needs the axis {names} of the tokens, and the layer was called outside of "
            "a `vmap` with such a name. Map over the tokens by "
            f"jax.vmap(..., axis_name={axes[0]!r})"
        ) from err


def place_on(axis: str, count: int) -> Int[Array, ""]:
    """The place of this token on a named axis of `count` tokens.

    **Raises:** `WrapperError` if no axis has this name and size.
    """
    with named_axes(axis):
        size = jax.lax.psum(1, axis)
    if size != count:
        raise WrapperError(f"the axis {axis!r} has {size} entries, but there are {count} tokens")
    return jax.lax.axis_index(axis)


def among_largest(values: Float[Array, " n"], k: Int[Array, ""]) -> Bool[Array, " n"]:
    """Whether each value is among the `k` largest. Of equal values, the first ones win."""
    place = jnp.arange(values.size)
    is_before = (values[None, :] == values[:, None]) & (place[None, :] < place[:, None])
    is_larger = (values[None, :] > values[:, None]) | is_before
    return jnp.sum(is_larger, axis=1, dtype=k.dtype) < k


def checked_top_k(top_k: object, slots: int) -> Int[Array, ""]:
    """**Raises:** `ValueError` unless `top_k` is an int from 1 to `slots`."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= slots:
        raise ValueError(f"`top_k` must be an int from 1 to {slots}, the slots, but is {top_k!r}")
    return jnp.asarray(top_k, jnp.int32)
