"""Declared arrays as layers: selected, adapted, saved, merged and called."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from safetensors.numpy import load_file
from zoo_cases import perturb

from jno.lora import (
    Net,
    SelectionError,
    WrapperError,
    apply_lora,
    load_adapters,
    lora_report,
    merge_lora,
    plan_lora,
    save_adapters,
)
from jno_lora_arrays import DeclaredArray, LoRAArray, declare, infer, plain, through
from jno_lora_peft import load_peft, save_peft

AXES = {"(query|key)/kernel": "ioo", "out/kernel": "iio", "experts": "ios", "embedding": "eo"}


def params():
    keys = iter(jr.split(jr.key(0), 5))
    return {
        "query": {"kernel": jr.normal(next(keys), (6, 2, 3)), "bias": jnp.ones((2, 3))},
        "key": {"kernel": jr.normal(next(keys), (6, 2, 3))},
        "out": {"kernel": jr.normal(next(keys), (2, 3, 6))},
        "experts": jr.normal(next(keys), (6, 5, 4)),
        "embedding": jr.normal(next(keys), (9, 6)),
    }


def apply(params, ids):
    x = params["embedding"][ids]
    q, k = (jnp.einsum("ni,ihd->nhd", x, params[name]["kernel"]) for name in ("query", "key"))
    mixed = jnp.einsum("nhd,mhd->hnm", q + params["query"]["bias"][None], k)
    x = x + jnp.einsum("hnm,mhd,hdo->no", mixed, k, params["out"]["kernel"])
    return jnp.einsum("ni,ios->nso", x, params["experts"])


IDS = jnp.array([0, 8, 3])


def trained(net):
    return net.update(perturb(net.partition()[0], 0.1))


@pytest.fixture(scope="module")
def net():
    return trained(Net(declare(params(), AXES)).freeze().lora(rank=2, alpha=3.0))


def test_the_default_adapts_declared_arrays(net):
    rows = {row.path: row.wrapper for row in lora_report(net.module)}
    expected = dict.fromkeys(("query/kernel", "key/kernel", "out/kernel", "experts", "embedding"))
    assert rows == dict.fromkeys(expected, LoRAArray)
    # `(in, 6 outputs)`, `(6 inputs, out)`, four slices `(6, 5)`, and a lookup.
    assert net.module["query"]["kernel"].lora_B.shape == (6, 2)
    assert net.module["out"]["kernel"].lora_A.shape == (2, 6)
    assert net.module["experts"].lora_A.shape == (4, 2, 6)
    assert net.module["embedding"].lora_A.shape == (2, 9)
    template = jax.eval_shape(params)
    adapted = eqx.filter_eval_shape(
        lambda tree: apply_lora(declare(tree, AXES), 2, key=jr.key(0)), template
    )
    assert adapted["experts"].lora_B.shape == (4, 5, 2)


def test_plain_has_the_structure_of_the_parameters_and_a_file_restores_the_adapters(net, tmp_path):
    net.save_adapters(tmp_path / "adapters.safetensors")
    other = Net(declare(params(), AXES)).load_adapters(tmp_path / "adapters.safetensors")
    assert eqx.tree_equal(other.module, net.module)
    bare = plain(net.module)
    assert jax.tree.structure(bare) == jax.tree.structure(params())
    assert jnp.allclose(apply(bare, IDS), through(apply)(net.module, IDS), rtol=1e-4, atol=1e-3)
    undone = plain(Net(declare(params(), AXES)).module)
    assert eqx.tree_equal(undone, params())
    assert eqx.tree_equal(plain(Net(net.module).unwrap().module), params())


@pytest.mark.parametrize("axes", ["ioo", "iio", "oio", "sio", "ios", "iso", "soi", "oei"])
def test_a_box_keeps_the_array_and_its_matrix(axes):
    array = jnp.arange(24.0).reshape(2, 3, 4)
    box = DeclaredArray.of(array, axes)
    assert jnp.array_equal(box.plain(), array)
    stack = LoRAArray.stack_ndim(box)
    assert stack == axes.count("s")
    inputs = [n for n, letter in enumerate(axes) if letter in "ie"]
    moved = jnp.moveaxis(array, inputs, range(-len(inputs), 0))
    if "s" in axes:
        moved = jnp.moveaxis(array, [axes.index(x) for x in "soi"], (0, 1, 2))
    expected = moved.reshape(*box.array.shape[:stack], -1, box.matrix().shape[-1])
    assert jnp.array_equal(box.matrix(), expected)


def test_words_that_are_looked_up_start_as_embeddings_do():
    table = {"embedding": jnp.ones((4000, 4))}
    for axes, size in (("eo", 1.0), ("io", 4000**-0.5)):
        A = apply_lora(declare(table, {"emb": axes}), 2, key=jr.key(0))["embedding"].lora_A
        assert jnp.std(A) == pytest.approx(size, rel=0.1)


def test_functions_without_through_say_so(net):
    for params in (declare({"w": jnp.ones((2, 2))}, {"w": "io"}), {"w": net.module["embedding"]}):
        for use in (
            lambda p: jnp.ones((2, 2)) @ p["w"],
            lambda p: jnp.sum(p["w"]),
            lambda p: p["w"][0],
            lambda p: 1j * p["w"],
            lambda p: p["w"] + p["w"],
        ):
            with pytest.raises(SelectionError, match=r"Call the function by `through`"):
                use(params)
    with pytest.raises(SelectionError, match=r"through\(apply\)\(net.module, x\)"):
        net(IDS)
    with pytest.raises(SelectionError, match=r"a dict, which cannot be called.*apply\(net.module"):
        Net({"layer": eqx.nn.Linear(2, 2, key=jr.key(0))})(jnp.ones(2))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"qery/kernel": "ioo"}, "'qery/kernel' matches no array(.|\n)*query/kernel"),
        ({"kernel": "io"}, r"key/kernel is float32\[6, 2, 3\].* the axes 'io'.* of 2 axes"),
        ({"embedding": "xo"}, "letters o .* but are 'xo'"),
        ({"embedding": "oo"}, "at least one output and one input"),
        ({"(": "io"}, "must be a regex"),
        ({"kernel": "ioo", "out/kernel": "iio"}, "matches no array whose axes an earlier"),
        ({"codes": "io"}, "codes.*int32.*floating or complex"),
        ({"box": "oi"}, "declared already, with the axes 'io'"),
    ],
)
def test_errors_name_the_path(axes, message):
    box = DeclaredArray.of(jnp.ones((2, 2)), "io")
    with pytest.raises(SelectionError, match=message):
        declare({**params(), "codes": jnp.ones((2, 2), jnp.int32), "box": box}, axes)
    # The first regex that matches an array counts.
    declared = declare(params(), {"out/kernel": "iio", "kernel": "ioo"})
    assert declared["out"]["kernel"].axes == "iio"
    (row,) = plan_lora(declare({"w": jnp.ones((0, 2))}, {"w": "io"}), 1)
    assert row.reason == "it is (0, 2), declared with the axes 'io'"


def test_dropout_is_refused_as_it_would_do_nothing():
    net = Net(declare(params(), AXES)).freeze().lora(rank=2, options={"dropout": 0.5})
    with pytest.raises(WrapperError, match="Leave `dropout` out"):
        eqx.filter_eval_shape(through(apply), net.module, IDS)
    quiet = eqx.nn.inference_mode(net.module)
    assert eqx.filter_eval_shape(through(apply), quiet, IDS).shape == (3, 4, 5)


def test_inferred_axes_are_declared_as_they_are():
    axes = infer(apply, params(), IDS)
    assert axes.letters == {
        "query/kernel": "ioo",
        "key/kernel": "ioo",
        "out/kernel": "iio",
        "experts": "ioo",  # kept, as no other side has it
        "embedding": "eo",
    }
    declared = declare(params(), axes)
    assert eqx.tree_equal(plain(declared), params())
    assert merge_lora(declared)["experts"].axes == "ioo"


def test_files_of_peft_hold_declared_arrays_as_linear_layers(tmp_path):
    params = {
        "dense": {"kernel": jr.normal(jr.key(0), (4, 6))},
        "heads": jr.normal(jr.key(1), (6, 2, 3)),
    }
    declared = declare(params, {"kernel": "io", "heads": "ioo"})
    net = trained(Net(declared).freeze().lora(2, alpha=4.0))
    save_peft(net, tmp_path, rename={"dense/kernel": "model/dense", "^heads": "model/query"})
    saved = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.model"
    update = saved[f"{prefix}.query.lora_B.weight"] @ saved[f"{prefix}.query.lora_A.weight"]
    expected = plain(net.module)["heads"] - params["heads"]
    assert jnp.allclose(2 * update.T.reshape(6, 2, 3), expected, atol=1e-5)
    rename = {"model/dense": "dense/kernel", "model/query": "heads"}
    assert eqx.tree_equal(load_peft(declared, tmp_path, rename=rename), net.module)


# --- complex arrays


def spectral(params, x):
    modes = jnp.einsum("ki,kio->ko", jnp.fft.rfft(x, axis=0)[:4], params["w"])
    return jnp.fft.irfft(modes, len(x), axis=0)


def complex_params():
    return {"w": jax.lax.complex(*jr.normal(jr.key(0), (2, 4, 3, 5)))}


def test_a_complex_array_is_two_real_arrays(tmp_path):
    params, x = complex_params(), jr.normal(jr.key(1), (8, 3))
    assert infer(spectral, params, x).letters == {"w": "sio"}
    declared = declare(params, {"w": "sio"})
    assert jnp.array_equal(plain(declared)["w"], params["w"])
    net = trained(Net(declared).freeze().lora(rank=2, alpha=3.0))
    report = net.summary()
    assert (report.total, report.trainable) == (2 * 60 + 2 * 4 * 16, 2 * 4 * 16)
    A, B = (np.asarray(x, np.float64) for x in (net.module["w"].lora_A, net.module["w"].lora_B))
    update = 1.5 * np.einsum("pkor,pkri->pkio", B, A)
    expected = np.asarray(params["w"]) + update[0] + 1j * update[1]
    np.testing.assert_allclose(plain(net.module)["w"], expected, atol=1e-5)
    trainable, frozen = net.partition()

    @jax.jit
    def both(trainable):  # by the adapter, and by the merged weight
        def of(call):
            return lambda t: jnp.sum(call(eqx.combine(t, frozen)) ** 2)

        by_adapter = of(lambda m: through(spectral, strict=True)(m, x))
        merged = of(lambda m: spectral(plain(m), x))
        return jax.value_and_grad(by_adapter)(trainable), jax.value_and_grad(merged)(trainable)

    for left, right in zip(*map(jax.tree.leaves, both(trainable)), strict=True):
        assert jnp.allclose(left, right, rtol=1e-4, atol=1e-3)
    save_adapters(net.module, tmp_path / "a.safetensors")
    loaded = load_adapters(declared, tmp_path / "a.safetensors")
    assert eqx.tree_equal(loaded, net.module)
