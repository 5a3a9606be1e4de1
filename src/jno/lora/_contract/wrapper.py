"""The contract of an adapter: `LoRAWrapper`."""

import abc
import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from equinox import AbstractClassVar, AbstractVar
from jax.sharding import PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import WrapperError
from .._paths import bullets, path_str
from .calling import over_stack
from .coded import refuse_coded, with_arrays
from .constructing import construct
from .shared import is_shared, replaced
from .statistics import zero_statistics


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about an adapter, for listings and citations.

    - `family`: the kind of method ("low rank", "rotation"), by which lists are sorted. Two
        rotations cannot be added.
    - `paper`: its number on arXiv or OpenReview.
    - `formula`: how many parameters train.
    - `cost`: a phrase about the additional cost of a call, if it matters.
    - `bibtex`: one or more BibTeX entries, for `citation`.
    """

    family: str | None = None
    paper: str | None = None
    formula: str | None = None
    cost: str | None = None
    bibtex: str | None = None


class LoRAWrapper(eqx.nn.StatefulLayer):
    """Base class of every adapter: an `eqx.Module` that replaces one layer.

    A subclass defines which fields are trained (`adapter_fields`), which layers it can wrap
    (`applies_to`), how it starts (`__init__(base, rank, alpha, *, key)`), what it computes
    (`__call__`) and how it becomes one plain layer again (`merge`). Everything else is optional,
    including `rank` and `alpha`. `MatrixAdapter` has further members, for adapters of matrices.

    `__init__`, `merge` and `unwrap` must be pure, with `key` as the only source of randomness: they
    are compiled once for all layers of one signature (class, static fields, shapes, dtypes).

    A wrapper can be read like its layer: an attribute that the wrapper lacks comes from `base` if
    the value has no arrays (`in_features`), else from the merged layer (`weight`). An adapter that
    is not `mergeable` returns the fields of `base`.

    The page "Your own adapter" of the documentation has a complete one, and `jno-lora new` makes a
    package.
    """

    # Names of the trainable fields. Everything else in the adapter is frozen.
    adapter_fields: AbstractClassVar[tuple[str, ...]]
    base: AbstractVar[Any]  # the layer that is adapted

    # Family name: `wrapper="dora"` selects every registered adapter whose variant is "dora".
    variant: ClassVar[str | None] = None
    auto: ClassVar[bool] = False  # whether the adapter takes part in `wrapper="auto"`
    # Whether a plain layer can replace the adapted layer. If not, `merge` raises a `WrapperError`.
    mergeable: ClassVar[bool] = True
    about: ClassVar[About] = About()  # facts for listings and citations

    if TYPE_CHECKING:
        # The rank in use and the numerator of the scale; `None` in an adapter without such a field.
        # `Any`, because type checkers would not let a subclass narrow `int | None`.
        rank: Any
        alpha: Any

        # How the dispatcher calls the class; each adapter defines its own constructor.
        def __init__(self, base: PyTree, rank: int, alpha: float, *, key: PRNGKeyArray): ...

    @classmethod
    @abc.abstractmethod
    def applies_to(cls, leaf: object) -> bool:
        """Whether this adapter can wrap `leaf`, any node of a model. Must never raise."""

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, with the adapter. `key=` is dropped if unsupported."""

    @abc.abstractmethod
    def merge(self) -> eqx.Module:
        """One plain layer of the base's structure, shapes and dtypes, with the adapter folded in.

        Pure and differentiable.
        """

    def unwrap(self) -> eqx.Module:
        """The layer as it was before adapting."""
        return self.base

    @classmethod
    def why_not(cls, leaf: object) -> str | None:
        """Why this adapter rejects a near miss; else `None`. For plans."""
        return None

    @classmethod
    def default_alpha(cls, rank: int) -> float:
        """The default for `alpha`: the rank, so that a scale of `alpha / rank` is 1."""
        return float(rank)

    @classmethod
    def stack_ndim(cls, leaf: object) -> int:
        """The number of leading axes that a stack adds to `leaf`'s arrays. Default 0.

        `__init__`, `merge`, `unwrap`, `state`, `from_state`, `low_rank_form` and `penalty` are
        mapped over these axes, so each method gets a single layer.
        """
        return 0

    def penalty(self) -> Array:
        """A penalty to add to the loss, whose gradient only moves trained fields. Default 0."""
        return jnp.zeros(())

    def is_stateful(self) -> bool:
        """Whether `eqx.nn.Sequential` passes its state, as it does to a stateful layer."""
        return isinstance(self.base, eqx.nn.StatefulLayer) and self.base.is_stateful()

    def partition_specs(self) -> dict[str, PartitionSpec]:
        """The sharding of the arrays around a sharded base: a spec by field, or by path in a field.

        Called once, when the base's arrays have a `NamedSharding`. Arrays without a spec are
        replicated. For a stacked layer, `self` is the whole stack.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """The arrays that a checkpoint stores: by default every array outside `base`, by its path.

        Arrays of a `Shared` are left out, because a file stores them once. The state must contain
        everything that an option changes, because `options_of` and `from_state` have nothing else.
        """
        return {
            path_str(path): jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
            for path, leaf in jtu.tree_leaves_with_path(_without_base(self), is_leaf=is_shared)
            if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        """The options of the constructor that this `state()` was saved with. Default: none.

        Needed for options that change the names or shapes of arrays, which `from_state` gets from
        `__init__`. The arrays may be traced, so look at names, shapes and dtypes only. `state` is
        the state of one layer, even for a stacked layer.
        """
        return {}

    @classmethod
    def from_state(
        cls, base: eqx.Module, state: Mapping[str, Array], rank: Any, alpha: Any
    ) -> "LoRAWrapper":
        """The adapter around `base` with this `state()`, without running the initialiser.

        `base` is the layer as it was before adapting. `rank` and `alpha` are `None` if the adapter
        lacks them. By default `__init__` is only traced (`eqx.filter_eval_shape`), with the options
        that `options_of(state)` returns.

        **Raises:** `WrapperError` if `state` has other names or shapes than the adapter.
        """
        make = functools.partial(
            construct,
            cls,
            key=jax.random.key(0),
            options=cls.options_of(state),
            statistics=zero_statistics(cls, base),
        )
        template = eqx.filter_eval_shape(make, base, rank, alpha)
        leaves, treedef = jtu.tree_flatten_with_path(_without_base(template))
        names = [path_str(path) for path, _ in leaves]
        arrays = zip(names, leaves, strict=True)
        expected = {name: x.shape for name, (_, x) in arrays if hasattr(x, "shape")}
        given = {name: jnp.shape(x) for name, x in state.items()}
        misfits = [f"{n}: expected, missing" for n in expected if n not in given]
        misfits += [f"{n}: not a field of {cls.__name__}" for n in given if n not in expected]
        shapes = [(n, shape, given.get(n, shape)) for n, shape in expected.items()]
        misfits += [f"{n}: expected shape {a}, got {b}" for n, a, b in shapes if a != b]
        if misfits:
            raise WrapperError(f"The saved state does not fit {cls.__name__}:\n{bullets(misfits)}")
        filled = [state.get(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
        # A shared array must be the saved array, never a new array.
        without_base = jax.tree.map(
            lambda x: replaced(x, make=None) if is_shared(x) else x,
            jtu.tree_unflatten(treedef, filled),
            is_leaf=is_shared,
        )
        return eqx.tree_at(lambda w: w.base, without_base, base, is_leaf=lambda x: x is None)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if cls.__doc__ is None:
            # The inherited docstring. A dataclass would put its signature here.
            cls.__doc__ = inspect.getdoc(cls)
        # Looked up with inheritance, because it may come from a mixin that is not an adapter.
        call = inspect.getattr_static(cls, "__call__")
        if not getattr(call, "__isabstractmethod__", False) and not hasattr(call, "_has_scope"):
            setattr(cls, "__call__", _in_scope(call))  # noqa: B010

    def __dir__(self) -> list[str]:
        # For completion, with the attributes that `__getattr__` finds in the layer.
        return sorted({*super().__dir__(), *dir(self.__dict__.get("base"))})

    def __getattr__(self, name: str) -> Any:
        # Reached only if normal lookup failed. A declared field that is not set yet (inside
        # `__init__`) must stay an error, because the base's attribute of that name is another
        # value.
        is_field = name in {f.name for f in dataclasses.fields(self)}
        if name in ("rank", "alpha") and not (is_field or hasattr(type(self), name)):
            return None
        if is_field or (name[:2] == "__" == name[-2:]) or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        base = self.__dict__["base"]
        try:
            value = getattr(base, name)
        except AttributeError:
            raise AttributeError(
                f"Neither the adapter {type(self).__name__!r} nor the {type(base).__name__!r} "
                f"that it wraps has an attribute {name!r}"
            ) from None
        # A method of an Equinox module is a pytree that contains the module, so it has arrays as
        # well. A value without arrays (a static field, `Shared`'s placeholder) comes from the base.
        if not any(eqx.is_array(leaf) for leaf in jax.tree.leaves(value)):
            return value
        if not type(self).mergeable and name in {f.name for f in dataclasses.fields(base)}:
            return value  # its methods are refused: they would compute without the adapter
        return _read_weight.get()(self, name)


def overrides(cls: type, base: type[LoRAWrapper], name: str) -> bool:
    """Whether an adapter class has another member of that name than a base of the contract."""
    own, default = getattr(cls, name), getattr(base, name)
    # Of class methods: the function inside.
    return getattr(own, "__func__", own) is not getattr(default, "__func__", default)


def trainable_fields(cls: type[LoRAWrapper]) -> tuple[str, ...]:
    """The `adapter_fields` and the `optional_fields`, which are `None` without their options."""
    return (*cls.adapter_fields, *getattr(cls, "optional_fields", ()))


def unwrapped_layer(adapter: LoRAWrapper) -> eqx.Module:
    """`adapter.unwrap()`, mapped over the axes of a stacked layer."""
    if not overrides(type(adapter), LoRAWrapper, "unwrap"):
        return adapter.base  # mapping would copy the arrays of a stack
    return over_stack(lambda layer: layer.unwrap(), type(adapter).stack_ndim(adapter.base))(adapter)


def merged_layer(adapter: LoRAWrapper) -> eqx.Module:
    """`adapter.merge()`, mapped over the axes of a stacked layer.

    **Raises:** `WrapperError` if the layer stores an array in a form that cannot represent other
    values.
    """
    refuse_coded(adapter.base)
    return over_stack(lambda layer: layer.merge(), type(adapter).stack_ndim(adapter.base))(adapter)


_read_weight: ContextVar[Callable[[Any, str], Any]] = ContextVar(
    "_read_weight", default=lambda adapter, name: getattr(merged_layer(with_arrays(adapter)), name)
)


@contextlib.contextmanager
def weights_read_by(read: Callable[[Any, str], Any]) -> Iterator[None]:
    """A context in which `read(adapter, name)` returns the merged arrays that a model reads.

    By default, `adapter.weight` is `getattr(merged_layer(adapter), "weight")`.
    """
    token = _read_weight.set(read)
    try:
        yield
    finally:
        _read_weight.reset(token)


def is_adapter(node: object) -> TypeGuard[LoRAWrapper]:
    """Whether `node` is an adapted layer."""
    # By its type, because `isinstance` looks up `__class__`, which Equinox intercepts slowly.
    return issubclass(type(node), LoRAWrapper)


def _without_base(adapter: LoRAWrapper) -> PyTree:
    return eqx.tree_at(lambda w: w.base, adapter, None)


def _in_scope(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` in a scope of the adapter's name, for profiles. An unsupported `key=` is dropped."""
    parameters = inspect.signature(call).parameters
    takes_key = "key" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @functools.wraps(call)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not takes_key:
            kwargs.pop("key", None)
        with jax.named_scope(type(self).__name__):
            return call(self, *args, **kwargs)

    wrapped._has_scope = True  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped
