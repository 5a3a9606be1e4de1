"""A bank: each example of a batch gets what its own adapter gives alone."""

import threading
from dataclasses import fields

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from foundax_cases import declared
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from zoo_cases import perturb
from zoo_cases.models import compilations

from jno.lora import (
    JnoLoraError,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    lora_trainable_filter,
    merge_lora,
    save_adapters,
    swap_adapters,
)
from jno_lora_bank import AdapterBank, at_slot
from jno_lora_combine import sum_adapters
from jno_lora_foundax import (
    BottleneckLinear,
    CPSpectral,
    GainSpectral,
    LoRASpectral,
    ModeWeights,
    rsLoRASpectral,
)
from jno_lora_zoo import DoRA, LinearLayer, LoRA, PiSSA

SIZE, BATCH = 6, 12
METHODS = ("lora", "rslora", "lora-fa", "pissa", "milora", "vera", "dora", "ia3-out")


def adapters_of(model, wrapper="lora", seed=0, rank=2, target=None, options=None):
    """A set of adapters that have moved away from their start."""
    net = Net(model, key=jr.key(seed)).freeze()
    net.lora(rank, 3.0, wrapper=wrapper, target=target, options=options)
    return extract_adapters(perturb(net.module, 0.3, seed))


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(SIZE, 4, 8, 1, key=jr.key(0))


@pytest.fixture(scope="module")
def sets(model):
    sets = {name: adapters_of(model, name, seed) for seed, name in enumerate(METHODS)}
    sets["biased"] = adapters_of(model, "lora", 20, 3, options={"bias": "train"})
    sets["times 2"] = adapters_of(model, "lora", 22, options={"multiplier": 2.0})
    sets["one layer"] = adapters_of(model, "rslora", 21, 4, target="layers/1")
    return sets


@pytest.fixture(scope="module")
def xs():
    return jr.normal(jr.key(1), (BATCH, SIZE))


@pytest.fixture(scope="module")
def bank(model, sets):
    return AdapterBank(model, sets)


@eqx.filter_jit
def plain(model, xs):
    return jax.vmap(model)(xs)


def expected(model, sets, names, xs):
    models = [model if name is None else swap_adapters(model, sets[name]) for name in names]
    return jnp.stack([adapted(x) for adapted, x in zip(models, xs, strict=True)])


def test_each_example_uses_its_own(model, sets, bank, xs):
    names = [*sets, *METHODS][:BATCH]
    ys = bank.run(names, xs)
    np.testing.assert_allclose(ys, expected(model, sets, names, xs), atol=1e-5)
    index = jnp.asarray(bank.snapshot().indices(names))
    np.testing.assert_allclose(jax.vmap(bank)(xs, index), ys, atol=1e-6)
    np.testing.assert_allclose(bank(xs[3], names[3]), ys[3], atol=1e-6)


def test_slot_0_is_the_base_bit_for_bit(model, sets, bank, xs):
    of_base = plain(model, xs)
    assert jnp.array_equal(bank.run([None] * BATCH, xs), of_base)
    mixed = bank.run([None, "dora", None, "pissa"] * 3, xs)
    assert jnp.array_equal(mixed[::2], of_base[::2])
    assert not jnp.any(mixed[1::2] == of_base[1::2])
    # Even where a product with zeros would not be zero.
    wild = xs.at[0].set(jnp.inf)
    assert jnp.array_equal(bank.run([None] * BATCH, wild), plain(model, wild), equal_nan=True)


@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_a_file_of_a_known_form_compiles_nothing(model, sets, tmp_path, xs, method):
    bank = AdapterBank(model, {"first": sets[method]}, slots=4, rank=8)
    if method != "lora":  # all other adapters have a program for each rank
        bank.replace("first", adapters_of(model, method, seed=6, rank=3))
    new, path = adapters_of(model, method, seed=7, rank=3), tmp_path / "new.safetensors"
    save_adapters(new, path)
    with compilations() as seen:
        bank.add(path, "new")
    assert seen == []
    assert eqx.tree_equal(bank.adapters("new"), new)
    np.testing.assert_allclose(bank(xs[0], "new"), swap_adapters(model, new)(xs[0]), atol=1e-5)
    assert list(AdapterBank(model, [path, sets["lora"]]).slots) == ["0", "1"]


def test_adapters_come_and_go_without_compiling(model, sets, xs):
    bank = AdapterBank(model, {"a": sets["lora"]}, slots=3, rank=4, fixed=True)
    names = ["a", None] * (BATCH // 2)
    bank.run(names, xs)
    bank.add(sets["rslora"], "b")
    bank.remove("b")
    bank(xs[0], "a")
    with compilations() as seen:
        assert bank.add(sets["one layer"], "c") == 3  # the slot of "b" was emptied later
        assert bank.replace("a", sets["rslora"]) == 1
        assert bank.add(sets["lora-fa"], "d") == 2
        ys = bank.run(["c", "a", "d"] * 4, xs)
        np.testing.assert_allclose(bank(xs[0], "c"), np.asarray(ys)[0], atol=1e-6)
        bank.remove("c")
    assert seen == []
    now = {"a": sets["rslora"], "c": sets["one layer"], "d": sets["lora-fa"]}
    np.testing.assert_allclose(ys, expected(model, now, ["c", "a", "d"] * 4, xs), atol=1e-5)
    assert dict(bank.slots) == {"a": 1, "d": 2}
    assert bank.capacity == 3
    assert jnp.isnan(bank(xs[0], 3)).all()  # the slot of "c": no other adapter answers


def test_it_grows(model, sets, xs):
    bank = AdapterBank(model, {"a": sets["one layer"]}, slots=1)
    with compilations() as seen:
        for name in ("lora", "biased", "dora"):  # another layer, a higher rank, a shift, a gain
            bank.add(sets[name], name)
    assert seen != []
    assert bank.capacity == 7  # 2, 4, 8 slots with slot 0
    names = ["a", "lora", "biased", "dora"] * 3
    now = {**sets, "a": sets["one layer"]}
    np.testing.assert_allclose(bank.run(names, xs), expected(model, now, names, xs), atol=1e-5)


def test_it_may_be_empty(model, sets, xs):
    """A server may start before its first adapter, and have a turn without a request."""
    bank = AdapterBank(model, slots=2)
    assert jnp.array_equal(bank.run([None] * BATCH, xs), plain(model, xs))
    bank.add(sets["lora"], "a")
    assert bank.run([], xs[:0]).shape == (0, 4)


def test_a_derivative_outlives_a_change(model, sets, xs):
    bank = AdapterBank(model, {"a": sets["lora"]}, slots=3)
    bank.add(sets["lora-fa"], "b")
    adapted = swap_adapters(model, sets["lora"])
    expected = jax.vjp(adapted, xs[0])[1](jnp.ones(4))
    _, of_one = jax.vjp(lambda x: bank(x, "a"), xs[0])
    bank.replace("b", sets["lora"])
    _, of_batch = jax.vjp(lambda x: bank.run(["a"], x), xs[:1])
    bank.replace("a", sets["lora-fa"])
    np.testing.assert_allclose(of_one(jnp.ones(4)), expected, atol=1e-6)
    np.testing.assert_allclose(of_batch(jnp.ones((1, 4)))[0][0], expected[0], atol=1e-6)


def test_a_snapshot_stays_as_it_was(model, sets, xs):
    bank = AdapterBank(model, {"a": sets["lora"], "b": sets["rslora"]})
    before = bank.snapshot()
    bank.remove("a")
    bank.add(sets["one layer"], "c")  # in the slot of "a"
    bank.replace("b", sets["lora-fa"])
    now = {"a": sets["lora"], "b": sets["rslora"]}
    for name, adapters in now.items():
        ys = per_example(before.model, xs, jnp.full(BATCH, before.slot(name)))
        np.testing.assert_allclose(ys, plain(swap_adapters(model, adapters), xs), atol=1e-5)
    with pytest.raises(SelectionError, match="no adapter 'a'"):
        bank.snapshot().indices(["a"])
    with jax.enable_x64(True):
        slots = jnp.asarray([1, 3, -1, 2**32 + 1] * 3)
        is_refused = jnp.isnan(per_example(before.model, xs, slots)).all(axis=1)
        assert jnp.array_equal(is_refused, slots != 1)  # no other adapter answers


class Layers(eqx.Module):
    """Every kind of layer, and a stack that a scan runs over."""

    table: eqx.nn.Embedding
    conv: eqx.nn.Conv1d
    grouped: eqx.nn.Conv1d
    gru: eqx.nn.GRUCell
    lstm: eqx.nn.LSTMCell
    blocks: eqx.nn.Linear

    def __call__(self, ids):
        x = jax.vmap(self.table)(ids)
        x = self.grouped(jnp.tanh(self.conv(x.T))).T
        state = self.gru(x[0], x[1])
        state, cell = self.lstm(x[2], (state, x[0]))
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        block = lambda x, layer: (jnp.tanh(eqx.combine(layer, static)(x)), None)  # noqa: E731
        return jax.lax.scan(block, state + cell, arrays)[0]


@pytest.fixture(scope="module")
def layers():
    keys = jr.split(jr.key(2), 6)
    return Layers(
        eqx.nn.Embedding(9, 4, key=keys[0]),
        eqx.nn.Conv1d(4, 4, 3, padding=1, padding_mode="CIRCULAR", key=keys[1]),
        eqx.nn.Conv1d(4, 4, 1, groups=2, key=keys[2]),
        eqx.nn.GRUCell(4, 4, key=keys[3]),
        eqx.nn.LSTMCell(4, 4, use_bias=False, key=keys[4]),
        eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(jr.split(keys[5], 3)),
    )


@pytest.fixture(scope="module")
def sets_of_layers(layers):
    lora, pissa, dora = (
        [method, f"{method}-embedding", f"{method}-recurrent"]
        for method in ("lora", "pissa", "dora")
    )
    return {
        "lora": adapters_of(layers, lora),
        "pissa": adapters_of(layers, pissa, 1, 1),
        "dora": adapters_of(layers, dora, 2, options={"multiplier": 2.0}),
        "biased": adapters_of(layers, lora, 3, options={"bias": "train"}),
    }


@pytest.mark.slow
def test_every_kind_of_layer(layers, sets_of_layers):
    bank = AdapterBank(layers, sets_of_layers)
    assert sorted(bank.adapters("dora")) == sorted(field.name for field in fields(layers))
    ids = jr.randint(jr.key(3), (8, 3), 0, 9)
    names = [None, "lora", "dora", "pissa", None, "lora", "dora", "biased"]
    ys = bank.run(names, ids)
    for name in sets_of_layers:
        examples = np.asarray([used == name for used in names])
        alone = plain(swap_adapters(layers, sets_of_layers[name]), ids)[examples]
        np.testing.assert_allclose(ys[examples], alone, atol=2e-5)
    # XLA of JAX 0.8 compiles the functions between these layers otherwise beside adapters. Each
    # layer alone gives the same bits there, too.
    rounding = 0 if jax.__version_info__ >= (0, 9) else 1e-6
    np.testing.assert_allclose(ys[::4], plain(layers, ids)[::4], rtol=rounding, atol=rounding)
    for name, adapters in sets_of_layers.items():  # a stack has an axis before the axis of slots
        assert eqx.tree_equal(bank.adapters(name), adapters)


class Doubled(eqx.nn.GRUCell):
    def __call__(self, input, hidden, *, key=None):
        return 2.0 * super().__call__(input, hidden, key=key)


class Step(eqx.Module):
    cell: eqx.nn.GRUCell

    def __call__(self, x):
        return self.cell(x[:3], x[3:])


@pytest.mark.parametrize("cls", [eqx.nn.GRUCell, Doubled])
def test_a_cell_alone_and_a_subclass_that_is_called_as_it_is(cls):
    step, xs = Step(cls(3, 2, key=jr.key(0))), jr.normal(jr.key(1), (3, 5))
    sets = {"a": adapters_of(step, "lora-recurrent"), "b": adapters_of(step, "lora-recurrent", 1)}
    ys = AdapterBank(step, sets).run(["b", None, "a"], xs)
    np.testing.assert_allclose(ys, expected(step, sets, ["b", None, "a"], xs), atol=1e-5)


class DoublePiSSA(PiSSA, LinearLayer):
    scaling = property(lambda self: 2 * super().scaling)


class DoubleDoRA(DoRA, LinearLayer):
    scaling = property(lambda self: 2 * super().scaling)


class HalfDoRA(DoRA, LinearLayer):
    def row_factor(self, norms):
        return (1 + super().row_factor(norms)) / 2


@pytest.mark.parametrize("cls", [DoublePiSSA, DoubleDoRA, HalfDoRA])
def test_a_subclass_with_another_scale_or_gain_is_served_with_it(cls):
    layer, xs = eqx.nn.Linear(4, 3, key=jr.key(0)), jr.normal(jr.key(1), (2, 4))
    adapted = apply_lora(layer, 2, 3.0, key=jr.key(2), wrapper=cls)
    adapted = eqx.tree_at(lambda a: a.lora_B, adapted, adapted.lora_B + 0.3)
    ys = AdapterBank(layer, {"a": extract_adapters(adapted)}).run(["a", "a"], xs)
    np.testing.assert_allclose(ys, jax.vmap(adapted)(xs), atol=1e-5)


def test_a_slot_merges_to_the_weights_of_its_adapter(model, sets, bank, xs):
    snapshot = bank.snapshot()
    for name in ("lora", "dora", "biased"):
        (slot,) = snapshot.indices([name])
        merged = merge_lora(at_slot(snapshot.model, int(slot)))
        wanted = merge_lora(swap_adapters(model, sets[name]))
        assert eqx.tree_equal(merged, wanted, rtol=1e-5, atol=1e-6)
    # Other adapters beside a bank stay as they are.
    adapted = swap_adapters(model, sets["lora"])
    _, beside = at_slot((snapshot.model, adapted), 1)
    assert eqx.tree_equal(beside, adapted)


@eqx.filter_jit
def per_example(model, xs, slots):
    return jax.vmap(lambda x, slot: at_slot(model, slot)(x))(xs, slots)


@eqx.filter_jit
def gradient(model, xs, slots):
    trainable, frozen = eqx.partition(model, lora_trainable_filter(model))

    def loss(trainable):
        return jnp.sum(jnp.sin(per_example(eqx.combine(trainable, frozen), xs, slots)))

    return eqx.filter_grad(loss)(trainable)


@pytest.mark.parametrize("function", [per_example, gradient])
def test_the_program_holds_no_copies(function):
    """The base runs once over the batch, whatever the number of slots."""
    outputs, inputs, rows, rank = 37, 31, 24, 2
    linear = eqx.nn.Linear(inputs, outputs, key=jr.key(0))
    xs = jr.normal(jr.key(1), (rows, inputs))
    memory_beside = []
    for slots in (5, 41):
        bank = AdapterBank(linear, {"a": adapters_of(linear)}, slots=slots - 1)
        model = bank.snapshot().model
        program = function.lower(model, xs, jnp.arange(rows) % 2).compile().compiled
        text = program.as_text()
        for shape in [
            *([rows, outputs, inputs], [rows, inputs, outputs]),  # a weight for each example
            *([rows, rank, inputs], [rows, rank, outputs]),  # factors for each example
            *([slots, outputs, inputs], [slots, inputs, outputs]),  # a weight for each slot
            *([slots, rows, outputs], [slots, rows, inputs]),  # activations for each slot
        ]:
            assert str(shape).replace(" ", "") not in text
        assert f"[{slots},{rank},{outputs}]" in text
        results = [line.split(" dot(")[0] for line in text.splitlines() if " dot(" in line]
        assert sum(f"f32[{rows},{outputs}]" in result for result in results) == 1
        of_factors = 4 * slots * rank * (inputs + outputs)
        memory = program.memory_analysis().temp_size_in_bytes
        memory_beside.append(memory - (of_factors if function is gradient else 0))
    # Activations for 36 more slots would be 128 KiB.
    assert memory_beside[1] <= memory_beside[0] + 4096


def test_a_scanned_stack_is_not_copied(layers, sets_of_layers):
    model = AdapterBank(layers, sets_of_layers).snapshot().model
    lowered = per_example.lower(model, jnp.zeros((7, 3), int), jnp.arange(7) % 4)
    text = lowered.compile().compiled.as_text()
    assert "f32[3,4,4]" in text  # the weights of the stack
    assert "f32[3,7,4,4]" not in text
    assert "f32[7,3,4,4]" not in text


@pytest.mark.parametrize("axis", [None, "slots"])
def test_sharded(model, sets, xs, axis):
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("slots", "out"))

    def put(x):
        if not eqx.is_array(x):
            return x
        spec = PartitionSpec("out", None) if x.ndim == 2 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    sharded = jax.tree.map(put, model)
    bank = AdapterBank(sharded, {"a": sets["lora"]}, slots=4, axis=axis)
    bank.add(sets["pissa"], "b")
    Bt = bank.snapshot().model.layers[0].lora_Bt
    assert Bt.sharding.spec == PartitionSpec(axis, None, "out")
    assert len(Bt) == (6 if axis else 5)
    names = ["a", "b", None] * 4
    now = {"a": sets["lora"], "b": sets["pissa"]}
    np.testing.assert_allclose(bank.run(names, xs), expected(model, now, names, xs), atol=1e-5)
    with pytest.raises(SelectionError, match="has the axes: slots, out"):
        AdapterBank(sharded, axis="rows")
    if axis:  # slots of a layer that lies on no mesh are not split
        first = eqx.tree_at(lambda m: m.layers[1], sharded, model.layers[1])
        bank = AdapterBank(first, {"a": sets["lora"]}, slots=4, axis=axis)
        whole, split = (bank.snapshot().model.layers[n].lora_Bt.sharding for n in (1, 0))
        assert (split.spec[0], whole.spec) == (axis, PartitionSpec())


class OwnLayer(LinearLayer):
    """Another kind of layer, for the same layers."""


class LoRAOwn(LoRA, OwnLayer):
    pass


def test_errors_change_nothing(model, sets, xs, unchecked, tmp_path):
    """`test_advice.py` has the errors with a way out."""
    wider = eqx.nn.MLP(SIZE, 4, 9, 1, key=jr.key(0))
    fixed = AdapterBank(model, {"a": sets["lora"]}, fixed=True)
    before = fixed.snapshot()
    for call, message in [
        (lambda: fixed.add(adapters_of(wider), "b"), "do not fit the model"),
        (lambda: fixed.add(sets["lora"], "b"), "an empty slot .all 1 are in use"),
        (lambda: fixed.replace("a", sets["one layer"]), r"rank 4 at 'layers/1' .it has 2"),
        (lambda: fixed.replace("a", sets["dora"]), "a gain of the outputs of 'layers/0'"),
        (lambda: fixed.replace("b", sets["lora"]), "no adapter 'b' .the nearest names: 'a'"),
        (lambda: fixed.replace("a", adapters_of(model, LoRAOwn)), "LoRAOwn needs slots of"),
        (lambda: fixed.replace("a", model), "must be an AdapterSet"),
        (lambda: fixed.replace("a", tmp_path), r"is a directory.*load_peft.*extract_adapters"),
        (lambda: fixed.remove("b"), "no adapter 'b'"),
        (lambda: fixed.run(["b"], xs[:1]), "no adapter 'b'"),
        (lambda: fixed.add(sets["lora"], 3), "must be a str"),
        (lambda: fixed(xs[0], 2), "no slot 2: the bank has 2, from 0"),
        (lambda: fixed(xs[0], 1.0), "one whole number"),
        (lambda: jax.jit(lambda xs: fixed.run(["a"] * BATCH, xs))(xs), "inside jit"),
        (lambda: fixed.run(["a"] * 3, xs), r"first axes of the arguments are \[\(12,\)\]"),
        (lambda: fixed.run("a", xs[:1]), "must be a list"),
        (lambda: at_slot(model, 1), "has no slots"),
        (lambda: AdapterBank(model, sets["lora"]), "a list"),
        (lambda: AdapterBank(model, slots=-1), "an int from 0"),
        (lambda: fixed.update(None), "partition.. was never called"),
    ]:
        with pytest.raises(JnoLoraError, match=message):
            call()
    after = fixed.snapshot()
    assert all(old is new for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_from_threads(model, sets, xs):
    """Adapters come and go during calls: every answer belongs to an adapter of its name."""
    bank = AdapterBank(model, {"kept": sets["lora"], "moving": sets["rslora"]}, slots=3)
    kept = plain(swap_adapters(model, sets["lora"]), xs)
    moving = [plain(swap_adapters(model, sets[name]), xs) for name in ("rslora", "lora-fa")]
    wrong, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            ys = bank.run(["kept", "moving"] * (BATCH // 2), xs)
            if not jnp.allclose(ys[::2], kept[::2], atol=1e-5):
                wrong.append("kept")
            if not any(jnp.allclose(ys[1::2], of_method[1::2], atol=1e-5) for of_method in moving):
                wrong.append("moving")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(15):
        bank.replace("moving", sets["lora-fa" if turn % 2 else "rslora"])
        bank.add(sets["lora"], "short")
        if turn % 3 == 0:
            bank.snapshot()  # what it holds stays
        bank.remove("short")
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_sum_of_products_has_one_slot(model, sets, xs):
    few = {name: sets[name] for name in ("lora", "rslora")}
    summed = sum_adapters(model, few, weights={"lora": 0.5})
    bank = AdapterBank(model, {"both": extract_adapters(summed)})
    np.testing.assert_allclose(bank(xs[0], "both"), summed(xs[0]), rtol=1e-5, atol=1e-5)
    assert bank.adapters("both")["layers/0"].rank == 4
    few = {name: sets[name] for name in ("lora", "biased", "times 2")}
    summed = sum_adapters(model, few, weights={"biased": -0.5})
    bank.add(extract_adapters(summed), "with a bias")
    np.testing.assert_allclose(bank(xs[0], "with a bias"), summed(xs[0]), rtol=1e-5, atol=1e-5)
    joined = swap_adapters(model, bank.adapters("with a bias"))
    np.testing.assert_allclose(joined(xs[0]), summed(xs[0]), rtol=1e-5, atol=1e-5)
    mixed = sum_adapters(model, {name: sets[name] for name in ("lora", "dora")})
    with pytest.raises(
        SelectionError, match=r"layers/0: a Sum\(lora, dora\), whose update has another form"
    ):
        bank.add(extract_adapters(mixed), "mixed")


class SpectralLayer(eqx.Module):
    w: jax.Array

    def __call__(self, x, *, key=None):
        modes = jnp.einsum("xi,xio->xo", jnp.fft.rfft(x, axis=0)[:4], self.w)
        return jnp.fft.irfft(modes, len(x), axis=0)


FAMILIES = {SpectralLayer: ModeWeights(("w",), "xio", lambda n: np.arange(n[0]))}
CLASSES = {
    cls: declared(cls, FAMILIES) for cls in (LoRASpectral, rsLoRASpectral, CPSpectral, GainSpectral)
}


@pytest.fixture(scope="module")
def spectral():
    re, im = jr.normal(jr.key(0), (2, 4, 3, 4))
    return eqx.nn.Sequential([SpectralLayer(jax.lax.complex(re, im)), eqx.nn.Lambda(jnp.tanh)])


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES.values(), ids=[cls.__name__ for cls in CLASSES])
def test_adapters_of_several_matrices(cls, spectral):
    xs = jr.normal(jr.key(2), (4, 8, 3))
    sets = {name: adapters_of(spectral, cls, seed, seed + 1) for seed, name in enumerate("ab")}
    bank = AdapterBank(spectral, {"a": sets["a"]}, slots=2)
    bank.add(sets["b"], "b")  # of a higher rank
    names = ["b", None, "a", "b"]
    ys = bank.run(names, xs)
    np.testing.assert_allclose(ys, expected(spectral, sets, names, xs), atol=2e-5)
    assert jnp.array_equal(bank.run([None] * 4, xs), plain(spectral, xs))
    assert eqx.tree_equal(bank.adapters("a"), sets["a"])
    slot = bank.slots["b"]
    bank.remove("b")
    assert jnp.isnan(bank(xs[0], slot)).all()
    np.testing.assert_allclose(bank(xs[2], "a"), ys[2], atol=2e-5)


def test_a_bank_refuses_adapters_of_another_form(spectral):
    LoRA, CP = CLASSES[LoRASpectral], CLASSES[CPSpectral]
    bank = AdapterBank(spectral, {"a": adapters_of(spectral, LoRA, 0, 1)})
    before = bank.snapshot()
    with pytest.raises(SelectionError, match=r"arrays of other shapes .* such as `bands`"):
        bank.add(adapters_of(spectral, LoRA, 1, 1, options={"bands": {2: 1}}), "b")
    with pytest.raises(SelectionError, match=r"needs slots of another kind.*AdapterBank"):
        bank.add(adapters_of(spectral, CP, 1, 1), "b")
    with pytest.raises(SelectionError, match=r"Declared at .* is not just a product.*Net"):
        bank.optimiser(lambda rate: None, {"a": 1e-3})
    assert eqx.tree_equal(bank.snapshot().model, before.model)


@pytest.mark.slow
def test_bottlenecks_have_slots_as_well():
    model = {"layer": eqx.nn.Linear(3, 4, key=jr.key(0))}
    sets = {
        name: adapters_of(model, BottleneckLinear, seed, seed + 1) for seed, name in enumerate("ab")
    }
    bank, xs = AdapterBank(model, sets), jr.normal(jr.key(1), (3, 3)).at[1].set(jnp.inf)
    call = lambda model, x: model["layer"](x)  # noqa: E731
    ys = bank.run(["b", None, "a"], xs, function=call)
    alone = [call(swap_adapters(model, sets[name]), x) for name, x in (("b", xs[0]), ("a", xs[2]))]
    np.testing.assert_allclose(ys[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(ys[2], alone[1], atol=1e-5)
    np.testing.assert_array_equal(ys[1], call(model, xs[1]))  # infinite, and not NaN
