"""Checks of an adapter's class, its claims and its leaves."""

import dataclasses
import inspect
import pathlib
import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import (
    CheckpointError,
    MatrixAdapter,
    Registry,
    load_adapters,
    lora_trainable_filter,
    save_adapters,
)
from jno.lora.extending import bullets, contract_problems, path_str, statistics_of, takes

from ._case import WrapperCase, skeleton, split
from ._comparisons import arrays_of, is_key, relative_error, require, same_bits
from ._conformance import ConformanceError, advice, answer_of, required, skip_unless
from ._programs import attributes, merged, output, stacked


@required("see the docstring of `jno.lora.LoRAWrapper` for how an adapter is written.")
def check_contract(case: WrapperCase) -> None:
    """The class has every member that `LoRAWrapper` requires."""
    problems = contract_problems(case.wrapper)
    require(not problems, f"{case.wrapper.__name__} breaks the contract:\n{bullets(problems)}")


@required("test the type first (`isinstance(leaf, ...)`), and return `False` for everything else.")
def check_applies_to_total(case: WrapperCase) -> None:
    """`applies_to` returns `True` for its layer, and `False` (no exception) for anything else."""
    base = case.make_base()
    answer = case.wrapper.applies_to(base)
    require(
        answer is True,
        f"`applies_to` returns {answer!r} for the case's layer.",
        "answer `True` to the layers the adapter is for (a bool, not a truthy object).",
    )
    objects = {
        "None": None,
        "an int": 3,
        "a string": "weight",
        "a JAX array": jnp.ones((3, 3)),
        "a NumPy array": np.ones((3, 3)),
        "a tuple": (base,),
        "a function": jnp.tanh,
        "a class": type(base),
        "a module without arrays": eqx.nn.Identity(),
        "an adapted layer": case.make(),
    }
    _require_no_claim(case, objects)


@advice("test that the weight is an array: `eqx.is_inexact_array(...)`.")
def check_applies_to_needs_arrays(case: WrapperCase) -> None:
    """`applies_to` returns `False` (no exception) for its layer without arrays."""
    base = case.make_base()
    objects = {
        "the layer with its arrays taken out": jax.tree.map(lambda _: None, base),
        "the layer with bools for arrays": jax.tree.map(lambda _: True, base),
    }
    _require_no_claim(case, objects)


def _require_no_claim(case: WrapperCase, objects: dict[str, object]) -> None:
    for name, value in objects.items():
        answer = answer_of(case.wrapper.applies_to, name, value)
        require(answer is False, f"`applies_to` answers {answer!r} to {name}.")


class _Unrelated(eqx.Module):
    """A layer of an unknown class, with attributes that many layers have."""

    weight: Array
    bias: Array


def _layers_of_other_kinds(key: PRNGKeyArray) -> list[eqx.Module]:
    linear = eqx.nn.Linear(3, 3, key=key)
    return [
        _Unrelated(jnp.ones((3, 3)), jnp.ones(3)),
        eqx.nn.Sequential([linear]),
        eqx.nn.MLP(2, 2, 3, 1, key=key),
        eqx.nn.LayerNorm(3),
        eqx.nn.Dropout(0.5),
        eqx.nn.WeightNorm(linear),
    ]


@required(
    "claim by the type, or by every attribute that the adapter relies on, with its shape. A layer "
    "that is claimed wrongly is hidden from the adapters that fit."
)
def check_applies_to_not_greedy(case: WrapperCase) -> None:
    """`applies_to` does not claim layers and containers of other kinds."""
    base = case.make_base()
    for layer in skeleton(_layers_of_other_kinds):
        require(
            isinstance(base, type(layer)) or not case.wrapper.applies_to(layer),
            f"`applies_to` claims a {type(layer).__name__}, a layer of another kind.",
        )


@required("return a value for every object of a model, and never raise.")
def check_answers(case: WrapperCase) -> None:
    """`why_not`, `stack_ndim`, `is_stateful` and `alpha` return what the contract requires."""
    base, adapter = case.make_base(), case.make()
    wrapper = case.wrapper
    objects = {
        "None": None,
        "an array": jnp.ones((3, 3)),
        "a module without arrays": eqx.nn.Identity(),
        "a container": (base,),
        "the layer with its arrays taken out": jax.tree.map(lambda _: None, base),
    }
    for name, value in objects.items():
        reason = answer_of(wrapper.why_not, name, value)
        is_reason = reason is None or (isinstance(reason, str) and reason)
        require(is_reason, f"`why_not` returns {reason!r} for {name}, not a reason or `None`.")
    for _ in range(2):
        problem = "`applies_to` gives another result when called again."
        require(wrapper.applies_to(base) is True, problem, "let `applies_to` change nothing.")
    reason = wrapper.why_not(base)
    require(reason is None, f"`why_not` returns {reason!r} for a layer that `applies_to` claims.")
    ndim = wrapper.stack_ndim(base)
    require(
        type(ndim) is int and ndim == 0,
        f"`stack_ndim` of a single layer is {ndim!r}, not 0.",
        "count the axes before one layer's own axes.",
    )
    stack = stacked([base, base])
    ndim = wrapper.stack_ndim(stack) if wrapper.applies_to(stack) else 1
    require(
        ndim == 1,
        f"`applies_to` claims a stack of two layers, whose `stack_ndim` is {ndim!r}, not 1: one "
        "adapter would be shared by both layers.",
        "define `stack_ndim(leaf)`: how many axes come before one layer's own axes. Or let "
        "`applies_to` return `False` for stacks.",
    )
    _check_stateful(base, adapter)
    alpha = adapter.alpha
    is_kept = alpha is None or (not eqx.is_array(alpha) and alpha == case.alpha)
    require(
        is_kept or "alpha" not in takes(wrapper),
        f"The constructor got alpha {case.alpha}, but `alpha` is {alpha!r}.",
        "keep alpha as given: a file restores the adapter with this number.",
    )


# `*args` and `**kwargs` take a state too.
_ANY_ARGUMENTS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_stateful(base: PyTree, adapter: PyTree) -> None:
    says = adapter.is_stateful()
    require(isinstance(says, bool), f"`is_stateful()` is {says!r}, not True or False.")
    has_state = isinstance(base, eqx.nn.StatefulLayer) and base.is_stateful()
    parameters = inspect.signature(type(adapter).__call__).parameters.values()
    takes_state = any(p.name == "state" or p.kind in _ANY_ARGUMENTS for p in parameters)
    require(
        not says or has_state or takes_state,
        "`is_stateful()` is True, but neither the layer nor `__call__` takes a state.",
        "leave `is_stateful` out: by default it answers as the layer does.",
    )


@required("draw all random numbers in `__init__`, from `key` alone.")
def check_key_forms(case: WrapperCase) -> None:
    """The constructor takes typed and raw keys, stores neither, and has no other randomness."""
    base = case.make_base()
    for key in (jax.random.key(5), jax.random.PRNGKey(5)):
        first, second = case.build(base, key), case.build(base, key)
        holds_key = any(map(is_key, arrays_of(first)))
        require(not holds_key, "The adapter holds a typed PRNG key as a leaf.")
        require(same_bits(first, second), "Two adapters built with the same key differ.")
    _require_dependence_on_key(case)


def _require_dependence_on_key(case: WrapperCase) -> None:
    """**Raises:** `ConformanceError` if all layers start with the same random numbers.

    Frozen arrays may be a fixed basis. Zeros, ones, knots and frequencies are not random numbers.
    """
    if statistics_of(case.wrapper):  # the same statistics may give the same start
        return
    layers = [case.make_base(), case.make_base(seed=71)]
    adapters = [case.build(layers[0], key) for key in map(jax.random.key, (5, 6))]
    adapters.append(case.build(layers[1], jax.random.key(7)))
    first, second, third = (split(adapter)[0] for adapter in adapters)
    if not same_bits(first, second):
        return
    leaves = jtu.tree_leaves_with_path(first)
    for (path, array), other_layers in zip(leaves, jax.tree.leaves(third), strict=True):
        require(
            not (np.array_equal(array, other_layers) and _looks_random(np.asarray(array))),
            f"The numbers in `{path_str(path)}` are the same for every key and every layer, so all "
            "layers start alike.",
        )


def _looks_random(array: np.ndarray) -> bool:
    """Whether most numbers differ, and are not monotonic along any axis."""
    for axis, size in enumerate(array.shape):
        signs = np.sign(np.diff(array, axis=axis))
        if size >= 4 and np.all(signs == signs.take([0], axis)):
            return False
    return array.size >= 4 and len(np.unique(np.abs(array).round(6))) > array.size / 2


@required("name only fields of floating arrays in `adapter_fields`; integers cannot train.")
def check_trainable_fields(case: WrapperCase) -> None:
    """The fields in `adapter_fields` hold floating arrays, only they train, and none is static."""
    adapter = case.make()
    for field in dataclasses.fields(adapter):
        static = getattr(adapter, field.name) if field.metadata.get("static", False) else None
        require(
            not any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(static)),
            f"The static field {field.name!r} holds an array, which JAX cannot compare or trace.",
            f"declare it as an array: `{field.name}: jax.Array`. It is frozen unless "
            "`adapter_fields` names it.",
        )
    trains = any(jax.tree.leaves(lora_trainable_filter(adapter)))
    for name in case.wrapper.adapter_fields:
        leaves = jax.tree.leaves(getattr(adapter, name))
        require(
            trains and leaves and all(map(eqx.is_inexact_array, leaves)),
            f"The adapter field {name!r} holds {[eqx.tree_pformat(leaf) for leaf in leaves]}.",
        )


@required("correct the formula, the shapes or `adapter_fields`.")
def check_parameter_count(case: WrapperCase) -> None:
    """The number of trained parameters is the documented one."""
    skip_unless(case.parameters is not None, "the case has no `parameters`")
    adapter = case.make()
    size = sum(x.size * (2 if jnp.iscomplexobj(x) else 1) for x in arrays_of(split(adapter)[0]))
    require(size == case.parameters, f"{size} parameters train, {case.parameters} were promised.")


@required("copy the array for the second field: `jnp.copy(...)`.")
def check_no_shared_buffers(case: WrapperCase) -> None:
    """No two arrays of the adapter share a buffer, so that all can be donated."""
    arrays = [x for x in jax.tree.leaves(case.make()) if isinstance(x, jax.Array) and x.size]
    pointers = {array.unsafe_buffer_pointer() for array in arrays}
    require(
        len(pointers) == len(arrays),
        "Two leaves of the adapter share one buffer; donating the adapter to a compiled step "
        "(`eqx.filter_jit(donate=...)`) would fail.",
    )


@required("don't override `__getattr__`, and define no attribute that the base has.")
def check_reads_like_the_layer(case: WrapperCase) -> None:
    """The adapted layer has the attributes of the layer, with the update applied to them."""
    base, adapter = case.make_base(), case.make_trained()
    plain = merged(adapter) if case.mergeable else base
    of_base = [field.name for field in dataclasses.fields(base)]
    of_adapter = {"rank", "alpha", "base"}  # a layer's fields with these names are not checked
    names = [n for n in of_base if n not in of_adapter and not hasattr(MatrixAdapter, n)]
    for name, got in attributes(adapter, tuple(names)).items():
        expected = getattr(plain, name)
        if arrays_of(expected):
            is_same = relative_error(got, expected) <= 1e-5
        else:
            is_same = got is expected or bool(got == expected)
        require(
            is_same,
            f"`wrapper.{name}` is {eqx.tree_pformat(got)}, but the merged layer's is "
            f"{eqx.tree_pformat(expected)}.",
        )


@required(
    "return every array outside `base` that matters from `state()`, and restore all of them in "
    "`from_state`. It gets the base from before adapting: a method that changes it does so again."
)
def check_state_round_trip(case: WrapperCase) -> None:
    """The adapter is the same after it is saved to a file and loaded onto the original base."""
    trained = case.make_trained()
    restored = _saved_and_loaded(case, trained)
    require(
        same_bits(trained.state(), restored.state()),
        "The state of the restored adapter is not the state that was saved.",
    )
    # Up to rounding, because a base that the constructor changes (PiSSA) is recomputed.
    error = relative_error(output(case, restored), output(case, trained))
    require(
        error <= 1e-6,
        "The output of the adapter that `from_state` restored differs from the saved adapter's "
        f"(relative error {error:.1e}).",
    )
    require(
        jax.tree.structure(split(restored)[0]) == jax.tree.structure(split(trained)[0]),
        "The restored adapter trains other fields than the saved adapter.",
        "restore static fields as well.",
    )


_RESTORE = (
    "let `from_state` take the arrays of `state`, by default named as the fields, and let "
    "`options_of(state)` give the options that the names and shapes of the saved arrays stand for."
)


def _saved_and_loaded(case: WrapperCase, adapter: PyTree) -> PyTree:
    registry = Registry(discover=False)  # so that only this class is found
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "adapter.safetensors"
        save_adapters({"layer": adapter}, file, registry=registry, base_values=False)
        try:
            model = {"layer": case.make_base()}
            return load_adapters(model, file, wrappers=case.wrapper, registry=registry)["layer"]
        except CheckpointError as err:
            start = f"With the options {dict(case.options)}, the" if case.options else "The"
            problem = f"{start} saved adapter cannot be loaded: {err}"
            raise ConformanceError(problem, _RESTORE) from err


# How many times larger than the layer the frozen arrays of a checkpoint may be.
_TIMES_THE_LAYER = 100


@advice("recompute large frozen arrays in `from_state`, from a seed or from the layer.")
def check_state_size(case: WrapperCase) -> None:
    """`state()` has at most a hundred times as many frozen numbers as the layer has numbers."""
    trained = case.make_trained()
    in_state = sum(array.size for array in jax.tree.leaves(trained.state()))
    of_training = sum(array.size for array in arrays_of(split(trained)[0]))
    of_layer = sum(array.size for array in arrays_of(case.make_base()))
    require(
        in_state - of_training <= _TIMES_THE_LAYER * of_layer,
        f"`state()` has {in_state} numbers, of which {of_training} train, but the layer has only "
        f"{of_layer}.",
    )
