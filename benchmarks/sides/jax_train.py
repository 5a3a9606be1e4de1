"""Training an adapted model: the compiled step, and the calls around it. Serves ours and jNO.

Both distributions are imported as `jno.lora` and called alike, each in its environment. The adapter
`"bias"` trains the biases of the plain model. It is the floor: the forward pass and the gradients
of the inputs, which no adapter can avoid. `"all"` fine-tunes everything.
"""

import importlib
import pathlib
import sys
import tempfile
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ._models import compared_of, data_of, first_layer, model_of, outputs_of
from ._timing import Subject, timed

BASELINES = ("bias", "all")


def build(case: dict[str, Any], device: str) -> Subject:
    """All facts and measures of one adapter on one model."""
    queue = device == "gpu"
    plain = model_of(case)
    x, y = data_of(case, plain)
    if case["adapter"] in BASELINES:
        model, trains = plain, _baseline_mask(plain, case["adapter"])
        subject = Subject()
    else:
        lora = importlib.import_module("jno.lora")
        cls = getattr(lora, case["adapter"])
        rank, alpha, key = case["rank"], float(case["rank"]), jax.random.key(1)
        for_model: dict[str, Any] = {}
        for_layer: dict[str, Any] = {}
        if getattr(cls, "needs", ()):  # the adapter starts from statistics of the data
            from jno_lora_zoo import collect_statistics  # jNO's side lacks it

            statistics = collect_statistics(plain, [(x, y)], _mean_square, wrapper=cls)
            for_model = {"statistics": statistics}
            for_layer = {"statistics": statistics[next(iter(statistics))]}

        def apply() -> Any:
            adapted = lora.apply_lora(plain, rank, alpha, key=key, wrappers=cls, **for_model)
            return eqx.filter(adapted, eqx.is_array)

        def init() -> Any:
            adapter = cls(first_layer(plain), rank, alpha, key=key, **for_layer)
            return eqx.filter(adapter, eqx.is_array)

        start = time.perf_counter()
        jax.block_until_ready(apply())
        first_apply = time.perf_counter() - start
        model = lora.apply_lora(plain, rank, alpha, key=key, wrappers=cls, **for_model)
        trains = lora.lora_trainable_filter(model)
        subject = Subject({"apply_seconds": first_apply})
        if not for_model:
            subject.facts["traces"] = _traces(lora, cls, plain)
        subject.measures |= {
            "apply": timed(apply, jax.block_until_ready, queue=queue),
            "init": timed(init, jax.block_until_ready, queue=queue),
            **_merges(lora, model, queue),
        }
        if case.get("env", "ours") == "ours":
            subject.measures |= _adapter_files(lora, model, plain)
    if case["adapter"] == "all":
        subject.measures |= _model_files(plain)
    subject = add_training(subject, case, model, trains, (x, y), queue)
    if case["adapter"] in BASELINES:
        del subject.measures["compile"]
    return subject


def add_training(
    subject: Subject,
    case: dict[str, Any],
    model: Any,
    trains: Any,
    data: tuple[Any, jax.Array],
    queue: bool,
) -> Subject:
    """The facts and measures of a compiled step, which trains the arrays that `trains` marks."""
    arrays, static = eqx.partition(model, eqx.is_array)
    trainable, frozen = eqx.partition(arrays, trains)
    leaves = jax.tree.leaves(trainable)
    # A complex number counts as two parameters.
    subject.facts["trainable"] = sum(leaf.size * (1 + jnp.iscomplexobj(leaf)) for leaf in leaves)
    optimiser = optax.adam(1e-3)
    # Flat lists of copied arrays, so that the compiled program is timed without the flattening of
    # modules, and no donated buffer is needed elsewhere.
    state, state_form = jax.tree.flatten(_copy((trainable, optimiser.init(trainable))))
    weights, weights_form = jax.tree.flatten(_copy(trainable))
    constants, constants_form = jax.tree.flatten(_copy((frozen, *data)))

    def step(state: list[jax.Array], constants: list[jax.Array]) -> tuple[Any, jax.Array]:
        trainable, opt_state = jax.tree.unflatten(state_form, state)
        frozen, x, y = jax.tree.unflatten(constants_form, constants)

        def loss(trainable: Any) -> jax.Array:
            model = _resolved(eqx.combine(trainable, frozen, static))
            return jnp.mean((compared_of(case, model, x) - y) ** 2)

        value, grads = jax.value_and_grad(loss)(trainable)
        grads = jax.tree.map(jnp.conj, grads)  # the descent direction of complex arrays
        updates, opt_state = optimiser.update(grads, opt_state)
        trainable = optax.apply_updates(trainable, updates)
        return jax.tree.leaves((trainable, opt_state)), value

    def forward(weights: list[jax.Array], constants: list[jax.Array]) -> jax.Array:
        trainable = jax.tree.unflatten(weights_form, weights)
        frozen, x, _ = jax.tree.unflatten(constants_form, constants)
        return outputs_of(_resolved(eqx.combine(trainable, frozen, static)), x)

    def compile_step() -> Any:
        jax.clear_caches()  # as at the first call, no earlier trace is reused
        return jax.jit(step, donate_argnums=0).lower(state, constants).compile()

    start = time.perf_counter()
    compiled = compile_step()
    subject.facts["compile_seconds"] = time.perf_counter() - start
    subject.facts |= costs_of(compiled)
    compiled_forward = jax.jit(forward).lower(weights, constants).compile()
    subject.facts["forward temp"] = costs_of(compiled_forward)["temp"]
    current = [state]

    def one_step() -> jax.Array:
        current[0], value = compiled(current[0], constants)
        return value

    # Each step needs the step before, so steps can be queued on every device.
    subject.measures |= {
        "step": timed(one_step, lambda _: jax.block_until_ready(current), queue=True),
        "forward": timed(
            lambda: compiled_forward(weights, constants), jax.block_until_ready, queue=queue
        ),
        "compile": timed(compile_step, lambda _: None, queue=False),
    }
    return subject


def _resolved(model: Any) -> Any:
    """`model` with the arrays that its adapters share. jNO has no shared arrays."""
    lora = sys.modules.get("jno.lora")
    return lora.resolve(model) if hasattr(lora, "resolve") else model  # pyright: ignore


def _mean_square(model: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def _merges(lora: Any, model: Any, queue: bool) -> dict[str, Any]:
    arrays, static = eqx.partition(model, eqx.is_array)
    leaves, form = jax.tree.flatten(arrays)

    def merge(leaves: list[jax.Array]) -> list[jax.Array]:
        merged = lora.merge_lora(eqx.combine(jax.tree.unflatten(form, leaves), static))
        return jax.tree.leaves(eqx.filter(merged, eqx.is_array))

    jitted = jax.jit(merge)
    return {
        "merge": timed(lambda: merge(leaves), jax.block_until_ready, queue=queue),
        "merge jitted": timed(lambda: jitted(leaves), jax.block_until_ready, queue=queue),
    }


def _adapter_files(lora: Any, model: Any, plain: Any) -> dict[str, Any]:
    """The adapters alone, to a file and from it."""
    path = pathlib.Path(tempfile.mkdtemp()) / "adapters.safetensors"
    lora.save_adapters(model, path)

    def load() -> Any:
        return eqx.filter(lora.load_adapters(plain, path), eqx.is_array)

    return {
        "save": timed(lambda: lora.save_adapters(model, path), lambda _: None, queue=False),
        "load": timed(load, jax.block_until_ready, queue=False),
    }


def _model_files(model: Any) -> dict[str, Any]:
    """The whole model by Equinox's functions, as after full fine-tuning."""
    path = pathlib.Path(tempfile.mkdtemp()) / "model.eqx"
    eqx.tree_serialise_leaves(path, model)

    def load() -> Any:
        return eqx.filter(eqx.tree_deserialise_leaves(path, model), eqx.is_array)

    return {
        "save": timed(lambda: eqx.tree_serialise_leaves(path, model), lambda _: None, queue=False),
        "load": timed(load, jax.block_until_ready, queue=False),
    }


def _traces(lora: Any, cls: Any, plain: Any) -> int:
    """How often a jitted function is traced for three models that differ only in their key."""
    count = 0

    @eqx.filter_jit
    def touch(model: Any) -> Any:
        nonlocal count
        count += 1
        return jax.tree.leaves(eqx.filter(model, eqx.is_array))

    layer = eqx.nn.Sequential([first_layer(plain)])
    for seed in range(3):
        touch(lora.apply_lora(layer, 2, 2.0, key=jax.random.key(seed), wrappers=cls))
    return count


def _baseline_mask(model: Any, kind: str) -> Any:
    def trains(path: Any, leaf: Any) -> bool:
        is_chosen = kind == "all" or getattr(path[-1], "name", None) == "bias"
        return is_chosen and eqx.is_inexact_array(leaf)

    return jax.tree_util.tree_map_with_path(trains, model)


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype, copy=True), tree)


def costs_of(compiled: Any) -> dict[str, Any]:
    """XLA's figures of a compiled program: bytes of temporary memory, and flops."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "temp": None if memory is None else memory.temp_size_in_bytes,
        "flops": None if cost is None else cost.get("flops"),
    }
