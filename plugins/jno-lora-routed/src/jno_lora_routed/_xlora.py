"""X-LoRA: a classifier of a first pass's hidden states weights existing adapters."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jno.lora import WrapperError, lora_trainable_filter, swap_adapters, unwrap_lora
from jno.lora.extending import adapted_layers, map_adapters
from jno_lora_zoo import cited, with_attributes

from ._experts import Source, experts_of, set_of_experts
from ._routed import Routed, checked_count
from .adapters import MoELoRA
from .routers import Given, among_largest, checked_top_k


class GivenLoRA(MoELoRA):
    """The adapter that `XLoRA` puts around a layer: experts with weights from outside.

    Law: `y = W x + sum_i w_i B_i A_i x`.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "given-lora"
    about = cited("2402.07148", family="routed", formula="n (r (in + out) + in)")
    router_class = Given


class XLoRA(eqx.Module):
    """A model whose existing adapters are weighted for each token and layer by a classifier.

    A first pass of the plain model gives hidden states. A classifier maps the state of each token
    to a weight for each adapter (and each layer, with `layerwise`), and a second pass uses these
    weights. Only the classifier trains. This is a pytree, called with the arguments of the model.

    A layer can only find its token if the token axis has a name: if `hidden` returns states
    `(tokens, features)`, the model must map its layers over the tokens with
    `jax.vmap(layer, axis_name="tokens")`, and you pass `axis="tokens"`. If `hidden` returns one
    state `(features,)`, all layers use the weights of this state.

    **Arguments:**

    - `model`: a plain model.
    - `sets`: sets or files of plain LoRA of the same layers.
    - `hidden`: `hidden(model, *args)` returns the last hidden states, `(tokens, features)` or
        `(features,)`.
    - `features`: the size of a state.
    - `depth`, `width`: the number of linear layers of the classifier, and the size of its hidden
        layers.
    - `layerwise`: whether each layer has its own weights.
    - `softmax`, `temperature`: whether weights are a softmax over the adapters.
    - `top_k`, `top_k_softmax`: keep only the largest weights, perhaps with another softmax.
    - `pass_value`: the weight of every adapter in the first pass.
    - `scale`: multiplies all weights.
    - `axis`: the name of the axis of the tokens.
    - `train_experts`: whether the adapters train as well.

    **Raises:** `SelectionError` if the sets do not fit each other or the model; `ValueError` for an
    option with a wrong value. A call raises `WrapperError` for states of another size than
    `features`, for states of several tokens without `axis`, and for an axis without this name.

    Paper: Buehler and Buehler, "X-LoRA: Mixture of Low-Rank Adapter Experts, a Flexible Framework
    for Large Language Models with Applications in Protein Mechanics and Molecular Design",
    arXiv:2402.07148. The dropout of PEFT's classifier is left out.
    """

    model: PyTree  # with `GivenLoRA` adapters
    classifier: tuple[eqx.nn.Linear, ...]
    hidden: Callable[..., Any] = eqx.field(static=True)
    layerwise: bool = eqx.field(static=True)
    softmax: bool = eqx.field(static=True)
    temperature: float = eqx.field(static=True)
    top_k: int | None = eqx.field(static=True)
    top_k_softmax: bool = eqx.field(static=True)
    pass_value: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    axis: str | None = eqx.field(static=True)
    train_experts: bool = eqx.field(static=True)

    def __init__(
        self,
        model: PyTree,
        sets: Mapping[str, Source] | Iterable[Source],
        hidden: Callable[..., Any],
        *,
        features: int,
        key: PRNGKeyArray,
        depth: int = 1,
        width: int = 64,
        layerwise: bool = False,
        softmax: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_k_softmax: bool = False,
        pass_value: float = 0.0,
        scale: float = 1.0,
        axis: str | None = None,
        train_experts: bool = False,
    ):
        for name, count in {"features": features, "depth": depth, "width": width}.items():
            checked_count(name, count)
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive, but is {temperature!r}")
        equal = lambda A, B: {"weights": np.full(A.shape[:-2], 1 / A.shape[-3], A.dtype)}  # noqa: E731
        self.model = swap_adapters(model, set_of_experts(experts_of(sets), GivenLoRA, equal))
        slots = self.slots
        if top_k is not None:
            checked_top_k(top_k, slots)
        outputs = slots * (sum(self._counts()) if layerwise else 1)
        sizes = itertools.pairwise([features, *[width] * (depth - 1), outputs])
        keys = jax.random.split(key, depth)
        self.classifier = tuple(
            eqx.nn.Linear(inputs, outputs, key=k)
            for (inputs, outputs), k in zip(sizes, keys, strict=True)
        )
        self.hidden, self.layerwise, self.softmax = hidden, layerwise, softmax
        self.temperature, self.top_k, self.top_k_softmax = temperature, top_k, top_k_softmax
        self.pass_value, self.scale, self.axis = pass_value, scale, axis
        self.train_experts = train_experts

    @property
    def slots(self) -> int:
        """The number of adapters."""
        return next(iter(adapted_layers(self.model)))[1].router.slots

    @property
    def trainable(self) -> PyTree[bool]:
        """Bools in the structure of this pytree: `True` for the arrays that train."""
        mask = jax.tree.map(lambda _: False, self)
        classifier = jax.tree.map(eqx.is_inexact_array, self.classifier)
        model = lora_trainable_filter(self.model) if self.train_experts else mask.model
        return eqx.tree_at(lambda x: (x.classifier, x.model), mask, (classifier, model))

    def partition(self) -> tuple["XLoRA", "XLoRA"]:
        """`(trainable, frozen)`, which `eqx.combine` joins again."""
        return eqx.partition(self, self.trainable)

    def scalings(self, *args: Any, **kwargs: Any) -> Float[Array, "*tokens layers slots"]:
        """The weights of the adapters in each layer, for the arguments of a call.

        Layers are in the order of their paths in the model. Each layer of a stack counts.
        """
        first = unwrap_lora(self.model)
        if self.pass_value:
            layers = sum(self._counts())
            first = self._weighed(self._chosen(jnp.full((layers, self.slots), self.pass_value)))
        states = jax.lax.stop_gradient(self.hidden(first, *args, **kwargs))
        features = self.classifier[0].in_features
        needs_axis = states.ndim == 2 and self.axis is None
        if states.ndim > 2 or states.shape[-1:] != (features,) or needs_axis:
            raise WrapperError(
                f"`hidden` gave states of the shape {states.shape}. It must give ({features},), as "
                f"XLoRA(features=...) says, or (tokens, {features}) with `axis`, the name of the "
                "axis of the tokens in the model"
            )
        classify = jax.vmap(self._classified) if states.ndim == 2 else self._classified
        return classify(states)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model with the weights of `scalings`."""
        return self._weighed(self._chosen(self.scalings(*args, **kwargs)))(*args, **kwargs)

    def _classified(self, x: Float[Array, " features"]) -> Float[Array, "layers slots"]:
        for layer in self.classifier[:-1]:
            x = jax.nn.relu(layer(x))
        logits = self.classifier[-1](x).reshape(-1, self.slots)
        logits = jnp.broadcast_to(logits, (sum(self._counts()), self.slots))
        return jax.nn.softmax(logits / self.temperature) if self.softmax else logits

    def _chosen(self, weights: Float[Array, "*layers slots"]) -> Float[Array, "*layers slots"]:
        """The weights times the scale, perhaps with only the largest weights kept."""

        def of_layer(w: Float[Array, " slots"]) -> Float[Array, " slots"]:
            if self.top_k is not None:
                w = jnp.where(among_largest(w, jnp.asarray(self.top_k, jnp.int32)), w, 0)
            if self.top_k_softmax:
                w = jnp.where(w != 0, jax.nn.softmax(jnp.where(w != 0, w, -jnp.inf)), 0)
            return self.scale * w

        return jnp.vectorize(of_layer, signature="(s)->(s)")(weights)

    def _weighed(self, weights: Float[Array, "*tokens layers slots"]) -> PyTree:
        """The model with these weights in its layers."""
        ends = itertools.accumulate(self._counts())
        parts = dict(zip((path for path, _ in adapted_layers(self.model)), ends, strict=True))

        def weigh(path: str, adapter: Any) -> Routed:
            stack = adapter.settings.weights.shape[:-1]
            end = parts[path]
            part = jnp.moveaxis(weights[..., end - math.prod(stack) : end, :], -2, 0)
            given = part.reshape(*stack, *part.shape[1:])
            changes = {"weights": given, "axis": self.axis}
            return adapter.with_routing(with_attributes(adapter.routing, changes))

        return map_adapters(weigh, self.model)

    def _counts(self) -> list[int]:
        """How many layers each adapter covers: more than 1 for a stack."""
        return [math.prod(a.settings.weights.shape[:-1]) for _, a in adapted_layers(self.model)]
