"""The base class of all methods: the constructor, the law, and when to use a fast path."""

import abc
import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PRNGKeyArray

from jno.lora import LoRAWrapper, LowRankForm
from jno.lora.extending import CodedArray, overrides, with_arrays

from ._arrays import Matrix, compute_dtype
from ._layer_kind import Bias, LayerKind
from ._tracing import traced_once

# Lists sort the methods by how they change `W`.
FAMILIES = (
    "low rank",  # add a product of two trained factors
    "singular",  # train within the singular directions of W
    "structured",  # add an update of high rank with few parameters
    "rotation",  # rotate or reflect the inputs or outputs
    "transform",  # train coefficients of a transform of the update
    "sparse",  # train some entries
    "scale",  # scale the outputs
)


class Method(LayerKind):
    """A paper's method: its arrays, their start, its law `W -> W'`, and a fast path for `W' x`.

    A subclass declares its arrays as fields and defines `start` and `law`. If `W' x` costs less
    without the matrix `W'`, it also defines `forward`, which must agree with the law, and which is
    used if the layer's `__call__` is known to compute `W x + b`. Every other layer gets the law's
    weight and is called. Keyword-only parameters of `start` are options of the constructor
    (`options={...}` of `apply_lora`).

    An adapter class combines a method and a layer kind: `class DoRAConv(DoRA, ConvLayer): ...`, or
    `adapters_for`. Its attributes `method` and `kind` are these two bases, and its subclasses
    inherit both. A method by itself is its own `method`, and has the `kind` `LayerKind`.
    """

    method: ClassVar["type[Method]"]
    kind: ClassVar[type[LayerKind]] = LayerKind

    # Names of further trainable fields, each of which is `None` unless its option is given.
    optional_fields: ClassVar[tuple[str, ...]] = ()
    # The sizes of the matrix that limit the rank.
    _rank_limits: ClassVar[tuple[str, ...]] = ("out", "in")
    # Whether the law depends on `alpha`. If not, the constructor does not take it.
    has_alpha: ClassVar[bool] = True
    # Whether the law only changes the scale of each row of the matrix.
    scales_rows_only: ClassVar[bool] = False

    base: Any
    rank: int = eqx.field(static=True)
    alpha: Any = eqx.field(static=True)  # `None` if the method has no alpha

    def __init__(
        self,
        base: eqx.Module,
        rank: int,
        alpha: float | None,
        *,
        key: PRNGKeyArray,
        adapter_dtype: Any = None,
        **options: Any,
    ):
        W = self.matrix(base)
        self.base, self.alpha = base, alpha if self.has_alpha else None
        self.rank = self.effective_rank(rank, *W.shape)
        dtype = adapter_dtype_for(W, adapter_dtype)
        if self.needs:
            options["statistics"] = self._in_dtype_of(W, options.get("statistics"))
        for name, value in self._initial_fields(W, self.rank, key, dtype, **options).items():
            setattr(self, name, value)

    @classmethod
    def _in_dtype_of(cls, W: Matrix, statistics: Mapping[str, Array] | None) -> dict[str, Array]:
        names = [need if isinstance(need, str) else need.name for need in cls.needs]
        missing = [name for name in names if name not in (statistics or {})]
        if statistics is None or missing:
            raise ValueError(
                f"{cls.__name__} starts from data: `statistics=` must hold {', '.join(missing)}, "
                "as `jno_lora_zoo.collect_statistics` collects it"
            )
        return {name: jnp.asarray(statistics[name]).astype(W.dtype) for name in names}

    @classmethod
    def effective_rank(cls, rank: int, outputs: int, inputs: int) -> int:
        """The rank that a matrix of this size allows."""
        sizes = {"out": outputs, "in": inputs}
        return min([rank, *map(sizes.__getitem__, cls._rank_limits)])

    @abc.abstractmethod
    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Any]:
        """The initial arrays of the adapter, by field, in the given `dtype`.

        `W` is the base's matrix, `r` the effective rank, `key` the only source of randomness.
        `self.base` and `self.alpha` are set. A method that starts by changing the base returns the
        new base as `"base"`. A method with `needs` takes another keyword, `statistics`: the arrays
        by name, in the dtype of `W`.
        """

    def _initial_fields(self, *start: Any, **options: Any) -> dict[str, Any]:
        """The fields that the constructor sets: by default the result of `start`."""
        return self.start(*start, **options)

    @abc.abstractmethod
    def law(self, W: Matrix) -> Matrix:
        """The adapted matrix `W'`, for the matrix `W` of `base`."""

    def form_of_law(self) -> LowRankForm | None:
        """The law as a `LowRankForm`, for the matrix of `base`: the residual, if `base` has it."""
        replaces_base = overrides(type(self), LoRAWrapper, "unwrap")
        return None if replaces_base else self.low_rank_form()

    def bias_law(self, b: Bias) -> Bias:
        """The adapted bias, for the bias `b` of `base`: `b` itself unless a method adapts it."""
        return b

    def forward(self, x: ArrayLike) -> Array:
        """`W' x` by the operations of the layer kind."""
        raise NotImplementedError

    def has_fast_path(self) -> bool:
        """Whether `forward` computes the law for this layer, decided from static facts only."""
        return type(self).forward is not Method.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted layer's output, for the arguments that the layer itself takes."""
        only_input = len(args) == 1 and kwargs.keys() <= {"key"}
        if only_input and self.computes(args[0]) and self.has_fast_path():
            y = traced_once(type(self).forward, self, self.read(args[0]))
            return self.written(self.finished(y), args[0])
        # The law needs plain arrays.
        return with_arrays(self).merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def finished(self, y: Array) -> Array:
        """The layer's output for `y = W' x`: with the adapted bias."""
        b = self.bias_of(self.base)
        return self.finish(y, b if b is None else self.bias_law(b))

    def merge(self) -> eqx.Module:
        """The base layer with the law's weight and bias, computed in float32 at least."""
        layer = self.with_matrix(self.base, self.law(self.matrix(self.base)))
        b = self.bias_of(self.base)
        if b is None:
            return layer
        adapted = self.bias_law(b)
        return layer if adapted is b else self.replace_bias(layer, adapted)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        kinds = [base for base in cls.__bases__ if issubclass(base, LayerKind)]
        methods = [base for base in kinds if issubclass(base, Method)]
        layer_kinds = [base for base in kinds if base not in methods]
        if layer_kinds:
            cls.method, cls.kind = methods[0], layer_kinds[0]
        elif cls.kind is LayerKind:
            cls.method = cls
        # An explicitly written constructor is inherited unchanged.
        inherited = cls.__init__
        if "start" in vars(cls) and (
            inherited is Method.__init__ or hasattr(inherited, "is_generated")
        ):
            cls.__init__ = _constructor(cls)


def _constructor(cls: type[Method]) -> Callable[..., None]:
    """`Method.__init__` with the options of `cls` in its signature, which planning reads."""

    @functools.wraps(Method.__init__)
    def construct(self: Method, *args: Any, **kwargs: Any) -> None:
        Method.__init__(self, *args, **without_alpha(cls, args, kwargs))

    signature = inspect.signature(construct)
    dropped = {"options"} if cls.has_alpha else {"options", "alpha"}
    named = [p for name, p in signature.parameters.items() if name not in dropped]
    for function in (cls.start, cls._initial_fields):
        options = inspect.signature(function).parameters.values()
        named += [option for option in options if option.kind is option.KEYWORD_ONLY]
    setattr(construct, "is_generated", True)  # noqa: B010
    setattr(construct, "__signature__", signature.replace(parameters=named))  # noqa: B010
    return construct


def without_alpha(method: type[Method], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a constructor. A method without an alpha ignores one, which jNO passes."""
    return kwargs if method.has_alpha or len(args) > 2 else {"alpha": None, **kwargs}


def adapter_dtype_for(weight: ArrayLike | CodedArray, adapter_dtype: Any) -> np.dtype:
    """The dtype of an adapter's arrays, by default the weight's, but at least float32.

    **Raises:** `ValueError` unless `adapter_dtype` is a floating dtype, because other dtypes cannot
    train.
    """
    if adapter_dtype is None:
        return compute_dtype(weight)
    with contextlib.suppress(TypeError):  # NumPy raises it for unknown names
        dtype = jnp.dtype(adapter_dtype)
        if jnp.issubdtype(dtype, jnp.floating):
            return dtype
    raise ValueError(
        "`adapter_dtype` must be a floating dtype, such as jnp.float32 or its name 'bfloat16', "
        f"but is {adapter_dtype!r}"
    )
