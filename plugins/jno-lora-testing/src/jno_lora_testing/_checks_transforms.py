"""Checks of an adapter under JAX: gradients, transformations, and meshes of devices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray, PyTree

from jno.lora import apply_lora, merge_lora, resolve
from jno.lora.extending import is_coded, path_str, run, with_arrays

from ._case import NOT_MERGEABLE, WrapperCase, perturbed, random_statistics, split
from ._comparisons import arrays_of, relative_error, require, require_close
from ._conformance import advice, required, skip_unless
from ._programs import (
    gradients,
    mapped_and_scanned,
    mapped_output,
    output,
    require_gradients_of_merge,
    shard,
    slice_of,
    stacked,
)
from ._symmetries import Inputs

_TOLERANCE = 2e-5


@required(
    "use every array of `adapter_fields` in `__call__`, without `stop_gradient`; check divisions "
    "and roots at zero."
)
def check_gradients(case: WrapperCase) -> None:
    """Gradients of the trainable arrays are finite, and nonzero after a step."""
    for stage, adapter in (("at the start", case.make()), ("after a step", case.make_trained())):
        grads = _gradients(case, adapter)
        require(
            any(map(np.any, jax.tree.leaves(grads))),
            f"All gradients {stage} are zero, so nothing trains.",
            "let one factor of a product start with random numbers.",
        )
        for path, grad in jtu.tree_leaves_with_path(grads):
            where = f"The gradient of `{path_str(path)}` {stage}"
            require(np.all(np.isfinite(grad)), f"{where} is not finite.")
            is_moving = stage == "at the start" or not grad.size or np.any(np.asarray(grad) != 0)
            require(is_moving, f"{where} is zero everywhere.")


@required("stop gradients at the same values in both (DoRA's norm), and use only JAX operations.")
def check_merge_gradients(case: WrapperCase) -> None:
    """Merging inside the loss gives the same gradients as calling the adapter."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    problem = "The gradients through `merge()` differ from those through `__call__`"
    require_gradients_of_merge(case, gradients, case.make_inputs(), 10 * _TOLERANCE, problem)


@required("no Python `int()`, `float()` or `if` on array values in `__init__` or `__call__`.")
def check_jit(case: WrapperCase) -> None:
    """The constructor and the call work under `jit`, with the same outputs."""
    inputs = case.make_inputs()

    @eqx.filter_jit
    def compiled(base: PyTree, key: PRNGKeyArray, inputs: Inputs) -> PyTree:
        return case.run(perturbed(case.build(base, key)), inputs)

    require_close(
        compiled(case.make_base(), jax.random.key(3), inputs),
        case.run(case.make_trained(), inputs),
        10 * _TOLERANCE,
        "Compiled and eager outputs differ",
    )


@required("write `__call__` for one input, without assumptions on its batch axes.")
def check_vmap(case: WrapperCase) -> None:
    """`vmap` over inputs gives the same outputs as a loop."""
    trained = case.make_trained()
    several = [case.make_inputs(seed=seed) for seed in (21, 22, 23)]
    mapped = mapped_output(trained, case.call, stacked(several))
    looped = stacked([output(case, trained, inputs) for inputs in several])
    require_close(mapped, looped, _TOLERANCE, "`vmap` and a loop differ")


@required("keep everything that differs between layers in array fields.")
def check_constructor_vmap_and_scan(case: WrapperCase) -> None:
    """The constructor can be mapped over layers, and `lax.scan` can run the stack."""
    bases = [case.make_base(seed=seed) for seed in (31, 32)]
    keys = jax.random.split(jax.random.key(33), 2)
    inputs = case.make_inputs()
    adapters, scanned = run(mapped_and_scanned, case, stacked(bases), keys, inputs)
    for index in range(2):
        require_close(
            slice_of(scanned, index),
            output(case, slice_of(adapters, index), inputs),
            10 * _TOLERANCE,
            f"The mapped constructor's stack, run by `lax.scan`, differs from slice {index} alone",
        )
    shapes = [array.shape for array in arrays_of(case.make())]
    require(
        shapes == [array.shape[1:] for array in arrays_of(adapters)],
        "A mapped constructor gives other shapes than one call.",
        "derive shapes from the base's arrays, not from a stack around them.",
    )


@advice(
    "define `stack_ndim(leaf)`, the number of axes before one layer's own; or return `False` for "
    "stacked layers in `applies_to`."
)
def check_stacked_layers(case: WrapperCase) -> None:
    """A stacked layer that the adapter claims is adapted and merged slice by slice."""
    bases = [case.make_base(seed=seed) for seed in (41, 42)]
    stack = stacked(bases)
    skip_unless(case.wrapper.applies_to(stack), "the adapter does not claim stacked layers")
    model = _apply(case, stack)
    trained_model = perturbed(model)
    # Slices do not contain the arrays that they share.
    adapted, trained = resolve(model), resolve(trained_model)
    plain: PyTree = merge_lora(with_arrays(trained_model)) if case.mergeable else trained
    for index, base in enumerate(bases):
        start = relative_error(output(case, slice_of(adapted, index)), output(case, base))
        adapter, layer = slice_of(trained, index), slice_of(plain, index)
        error = relative_error(output(case, layer), output(case, adapter))
        require(
            start <= _TOLERANCE and error <= 2 * _TOLERANCE,
            f"Slice {index} of a stacked layer: {start:.1e} from the layer at the start, merged "
            f"{error:.1e} from the adapter (relative).",
        )


@required("derive leaves' shapes and static fields from shapes, not from array values.")
def check_eval_shape(case: WrapperCase) -> None:
    """`eqx.filter_eval_shape` of the constructor gives the shapes of a real adapter."""
    base, key = case.make_base(), jax.random.key(3)
    template, actual = eqx.filter_eval_shape(case.build, base, key), case.make()
    expected, got = (
        [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
        for tree in (actual, template)
    )
    require(
        got == expected and jax.tree.structure(template) == jax.tree.structure(actual),
        f"The constructor gives {expected}, but under `eqx.filter_eval_shape` {got}.",
    )


@required("keep `__call__` pure.")
def check_checkpoint(case: WrapperCase) -> None:
    """Gradients stay the same under `eqx.filter_checkpoint` (rematerialisation)."""
    trained = case.make_trained()
    call = eqx.filter_checkpoint(case.call)
    expected = _gradients(case, trained)
    largest = max(float(np.max(np.abs(leaf), initial=0)) for leaf in jax.tree.leaves(expected))
    require_close(
        gradients(*split(trained), call, case.make_inputs()),
        expected,
        _TOLERANCE,
        "Gradients with and without `filter_checkpoint` differ",
        # The two programs round differently, so gradients near zero are compared loosely.
        least=max(1e-3, 1e-2 * largest),
    )


@required("decompose in `__init__` only; in a step, use matrix products or an elimination in JAX.")
def check_no_lapack_in_step(case: WrapperCase) -> None:
    """The compiled forward and gradient call no LAPACK routine."""
    step: Any = eqx.filter_jit(gradients.__wrapped__)
    lowered = step.lower(*split(case.make_trained()), case.call, case.make_inputs())
    require(
        "lapack" not in lowered.as_text().lower(),
        "The step calls LAPACK (an inverse, solve, SVD or QR). Several such calls in one compiled "
        "step can wait for each other forever on a CPU with few cores.",
    )


@required("name fields, or paths in fields, with a spec of at most as many axes as the array has.")
def check_partition_specs(case: WrapperCase) -> None:
    """`partition_specs` names arrays of the adapter and axes of the layer's mesh."""
    sharded, _ = shard(case.make_base())
    adapter = eqx.tree_at(lambda node: node.base, case.make(), sharded)
    specs = adapter.partition_specs()
    skip_unless(specs, "the adapter gives no `partition_specs`")
    outside = eqx.tree_at(lambda node: node.base, adapter, None)
    leaves = {path_str(path): leaf for path, leaf in jtu.tree_leaves_with_path(outside)}
    for name, spec in specs.items():
        named = [leaf for path, leaf in leaves.items() if f"{path}/".startswith(f"{name}/")]
        is_field = name in vars(adapter)  # an optional field, or a field of a shared array
        require(named or is_field, f"`partition_specs` names {name!r}, which is not a field.")
        axes = {axis for axes in spec for axis in (axes if isinstance(axes, tuple) else (axes,))}
        require(
            axes <= {None, "devices"} and all(len(spec) <= leaf.ndim for leaf in named),
            f"`partition_specs` gives {name!r} the spec {spec}, but its arrays are "
            f"{[leaf.shape for leaf in named]}, and the layer's mesh has the axis 'devices'.",
        )


@advice("make the computation depend on shapes, not on devices.")
def check_sharding(case: WrapperCase) -> None:
    """A layer sharded over devices is adapted, run and merged on its mesh.

    This needs several devices (see `--xla_force_host_platform_device_count`).
    """
    skip_unless(len(jax.devices()) > 1, "there is only one device")
    plain = case.make_base()
    layer, shardings = shard(plain)
    skip_unless(shardings, "the layer has no array that could be cut")
    adapted = perturbed(_apply(case, layer))
    on_one_device = perturbed(_apply(case, plain))
    devices = shardings[0].device_set
    require(
        all(array.sharding.device_set == devices for array in arrays_of(adapted)),
        "Some arrays of the adapter are not on the mesh of the layer it wraps.",
        "name the sharding of fields in `partition_specs`, and do not place arrays yourself.",
    )
    inputs = jax.device_put(case.make_inputs(), NamedSharding(shardings[0].mesh, PartitionSpec()))
    require_close(
        output(case, adapted, inputs),
        output(case, on_one_device),
        10 * _TOLERANCE,
        "Sharded and on one device, the outputs differ",
    )
    if case.mergeable and not any(map(is_coded, jax.tree.leaves(layer, is_leaf=is_coded))):
        merged = zip(arrays_of(merge_lora(adapted)), shardings, strict=True)
        require(
            all(x.sharding.is_equivalent_to(sharding, x.ndim) for x, sharding in merged),
            "The merged layer is sharded differently than the layer was.",
            "merge into arrays of the base's shapes; `merge_lora` then places them like the base.",
        )


def _apply(case: WrapperCase, base: PyTree) -> PyTree:
    """The adapter that `apply_lora` puts around `base`, which may be stacked or sharded."""
    settings: dict[str, Any] = {"wrappers": case.wrapper, "options": case.options}
    if (statistics := random_statistics(case.wrapper, case.make_base())) is not None:
        array, single = arrays_of(base)[0], arrays_of(case.make_base())[0]
        stack = array.shape[: array.ndim - single.ndim]
        stacked = {name: jnp.broadcast_to(x, (*stack, *x.shape)) for name, x in statistics.items()}
        settings["statistics"] = {"": stacked}
    return apply_lora(base, case.rank, case.alpha, key=jax.random.key(3), **settings)


def _gradients(case: WrapperCase, adapter: PyTree) -> PyTree:
    """The gradients of a loss of the output with respect to the trainable arrays."""
    return gradients(*split(adapter), case.call, case.make_inputs())
