"""Statistics of data: collected, used by constructors, saved, with clear errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tests.core.conftest import *  # noqa: F403
from tests.core.good_adapter import Good

import jno.lora
from jno.lora import CheckpointError, MatrixAdapter, Net, SelectionError, Statistic, WrapperError
from jno_lora_zoo import Statistics, allocate, collect_statistics


class MeanSquare(Statistic):
    name = "mean_square"
    of = "outputs"

    @staticmethod
    def left(V):
        return jnp.ones((V.shape[0], 1), V.dtype)

    @staticmethod
    def right(V):
        return V**2

    @staticmethod
    def value(mean):
        return mean[0]


MEAN_SQUARE = f"{__name__.partition('.')[0]}.mean_square"


class OtherMeanSquare(MeanSquare):
    """A second statistic of one name in one package."""


class Informed(Good):
    """A low-rank update that starts in the directions of the largest inputs."""

    variant = "informed"
    needs = ("input_covariance", "input_mean", "output_covariance", "gradient", MeanSquare)
    seen: jax.Array

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear)

    @classmethod
    def matrix(cls, layer):
        return layer.weight.astype(jnp.float32)

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)
        self.lora_A = jnp.linalg.eigh(statistics["input_covariance"])[1][:, -rank:].T
        self.seen = statistics["mean_square"]


def informed(**members):
    return type("Changed", (Informed,), members)


WithoutStatistics = informed(__init__=lambda self, base, rank, alpha, *, key: None)
KEY = jax.random.key(0)
MODEL = eqx.nn.MLP(3, 2, 5, 1, key=KEY)
LINEAR = eqx.nn.Linear(3, 2, key=KEY)
BATCHES = list(0.5 + jax.random.normal(jax.random.key(1), (2, 4, 3)))
X = jnp.concatenate(BATCHES)
HIDDEN = jax.vmap(lambda x: jax.nn.relu(MODEL.layers[0](x)))(X)  # the second layer's inputs
SPECS = [{"target": "layers/0", "rank": 1}, {"target": "layers/1", "rank": 1}]


def loss(model, batch):
    return jnp.mean(jax.vmap(model)(batch) ** 2)


def first_layer_only(model, batch):
    return jnp.sum(jax.vmap(model.layers[0])(batch))


def collected(model=MODEL, batches=BATCHES, loss=loss, wrapper=Informed, **options):
    return collect_statistics(model, batches, loss, wrapper=wrapper, **options)


@pytest.fixture(scope="module")
def statistics():
    def of_unchanged_outputs(probed, batch):
        y, expected = jax.vmap(probed)(batch), jax.vmap(MODEL)(batch)
        return jnp.where(jnp.all(y == expected), jnp.mean(y**2), jnp.nan)

    return collected(batches=iter(BATCHES), loss=of_unchanged_outputs)


def close(actual, expected, **tolerances):
    np.testing.assert_allclose(actual, expected, **{"rtol": 2e-5, "atol": 1e-6, **tolerances})


def test_statistics_are_means_over_all_examples(statistics):
    assert list(statistics) == ["layers/0", "layers/1"] and len(statistics) == 2
    for path, rows in (("layers/0", X), ("layers/1", HIDDEN)):
        close(statistics[path]["input_covariance"], rows.T @ rows / 8)
        close(statistics[path]["input_mean"], rows.mean(axis=0))
    y = jax.vmap(MODEL)(X)
    close(statistics["layers/1"]["output_covariance"], y.T @ y / 8)
    close(statistics["layers/1"][MEAN_SQUARE], (y**2).mean(axis=0))
    grads = [eqx.filter_grad(loss)(MODEL, batch) for batch in BATCHES]
    close(statistics["layers/0"]["gradient"], sum(grad.layers[0].weight for grad in grads) / 2)


@pytest.mark.parametrize("remat", [False, True])
def test_stacked_layers_run_by_a_scan(remat):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(12, 12, key=key))
    stack = make(jax.random.split(KEY, 3))
    keys = jax.random.split(jax.random.key(1))
    batch = jax.random.normal(keys[0], (9, 3)) @ jax.random.normal(keys[1], (3, 12))

    def inputs(layers, batch):
        arrays, static = eqx.partition(layers, eqx.is_array)

        def step(x, arrays):
            return jax.vmap(eqx.combine(arrays, static))(x), x

        last, inputs = jax.lax.scan(jax.checkpoint(step) if remat else step, batch, arrays)
        return inputs, last

    # A sketch keeps few columns, and is exact because all inputs are of rank 3.
    options = {"sketch": 6} if remat else {}
    found = collected(stack, [batch], lambda m, b: jnp.sum(inputs(m, b)[1]), **options)[""]
    seen, _ = inputs(stack, batch)
    expected = jnp.einsum("lbi,lbj->lij", seen, seen) / 9
    close(found["input_covariance"], expected, atol=1e-3 if remat else 1e-6)
    assert found["gradient"].shape == (3, 12, 12)
    adapted = jno.lora.apply_lora(stack, 2, wrapper=Informed, statistics={"": found}, key=KEY)
    assert adapted.lora_A.shape == (3, 2, 12) and adapted.seen.shape == (3, 12)


def test_a_sketch_takes_little_room_in_a_file(tmp_path):
    layer = eqx.nn.Linear(12, 2, key=KEY)
    keys = jax.random.split(jax.random.key(1))
    rows = jax.random.normal(keys[0], (9, 3)) @ jax.random.normal(keys[1], (3, 12))
    found = collected(layer, [rows], sketch=6)
    close(found[""]["input_covariance"], rows.T @ rows / 9, atol=1e-3)
    found.save(tmp_path / "statistics.safetensors")
    assert (tmp_path / "statistics.safetensors").stat().st_size < 4 * 12 * 12 + 900
    again = Statistics.load(tmp_path / "statistics.safetensors")
    close(again[""]["input_covariance"], found[""]["input_covariance"])


def test_a_layer_that_is_used_twice_counts_both_uses():
    layer, x = eqx.nn.Linear(3, 3, key=KEY), jnp.ones((1, 3))
    found = collected([layer], [x], lambda m, b: jnp.sum(jax.vmap(lambda x: m[0](m[0](x)))(b)))
    rows = jnp.stack([x[0], layer(x[0])])
    close(found["0"]["input_covariance"], rows.T @ rows / 2)


@pytest.mark.parametrize("mode", ["auto", "explicit", "shard_map"])
def test_on_a_mesh_the_statistics_are_the_same(mode, statistics):
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = Mesh(jax.devices()[:4], ("x",), axis_types=(kind,))

    def by_shards(model, batch):
        def local(batch):
            return jax.lax.pmean(loss(model, batch), "x")

        specs = {"in_specs": PartitionSpec("x"), "out_specs": PartitionSpec()}
        return jax.shard_map(local, mesh=mesh, **specs)(batch)

    if mode == "shard_map":
        found = collected(batches=[X], loss=by_shards)
    else:
        model = eqx.filter_shard(MODEL, NamedSharding(mesh, PartitionSpec()))
        found = collected(model, [jax.device_put(X, NamedSharding(mesh, PartitionSpec("x")))])
        jno.lora.apply_lora(model, 1, wrapper=Informed, statistics=found, key=KEY)
    for path in statistics:
        close(found[path]["input_covariance"], statistics[path]["input_covariance"])


def test_half_precision_layers_are_measured_in_float32():
    def half(x):
        return x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x

    found = collected(jax.tree.map(half, MODEL), [half(X)])
    assert all(x.dtype == jnp.float32 for x in found["layers/0"].values())


def test_files_restore_statistics_and_adapters(tmp_path):
    collected().save(tmp_path / "s.safetensors")
    again = Statistics.load(tmp_path / "s.safetensors")
    assert "layers/0" in str(again) and "input_covariance float32[3, 3]" in str(again)
    net = Net(MODEL).freeze().lora(rank=2, wrapper=Informed, statistics=again)
    given = Net(MODEL).freeze().lora(rank=2, wrapper=Informed, statistics=collected())
    assert eqx.tree_equal(net.module, given.module)
    net.save_adapters(tmp_path / "a.safetensors")
    loaded = Net(MODEL).load_adapters(tmp_path / "a.safetensors", wrappers=Informed)
    assert eqx.tree_equal(loaded.module, net.module)
    safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match="does not hold statistics"):
        Statistics.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"collect_statistics\(model, batches, loss, wrapper='informed'"),
        (
            {"statistics": {f"layers/{n}": {"gradient": jnp.ones((7, 3))} for n in (0, 1)}},
            r"gradient \(5, 3\).*got .*gradient \(7, 3\)",
        ),
    ],
)
def test_a_net_says_which_statistics_it_needs(arguments, message):
    with pytest.raises(SelectionError, match=message):
        Net(MODEL).lora(wrapper=Informed, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "`batches` is empty"),
        ({"loss": first_layer_only}, "does not reach.*\n.*layers/1"),
        # Without rows to count: the gradient is zero.
        ({"loss": first_layer_only, "wrapper": informed(needs=("gradient",))}, "layers/1"),
        ({"batches": [jnp.full((4, 3), jnp.nan)]}, "NaN or infinity"),
        ({"sketch": 0}, "`sketch` must be"),
        ({"wrapper": informed(needs=(), __init__=WithoutStatistics.__init__)}, "needs statistics"),
        (
            {
                "model": eqx.filter_eval_shape(lambda: eqx.nn.Linear(50_000, 2, key=KEY)),
                "batches": [jnp.ones((1, 50_000))],
            },
            r"50000 x 50000.*9\.3 GiB.*sketch=512",
        ),
    ],
)
def test_unusable_arguments(arguments, message):
    with pytest.raises(SelectionError, match=message):
        collected(**arguments)


class Turned(eqx.nn.Linear):
    """Its inputs are not rows of its matrix."""

    def __call__(self, x, *, key=None):
        return super().__call__(x.T[0])


def test_layers_whose_calls_cannot_be_measured():
    with pytest.raises(WrapperError, match="Define `inputs_of`"):
        collected(Turned(3, 2, key=KEY), [X], lambda m, b: jnp.sum(m(b[0][:, None])))
    with pytest.raises(WrapperError, match="by keyword"):
        collected(LINEAR, [X], lambda m, b: jnp.sum(m(x=b[0])))


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (informed(needs=("hessian",)), "neither one of input_covariance"),
        (informed(needs=(Statistic,)), "neither one of"),
        (informed(matrix=MatrixAdapter.matrix), "`matrix` must say"),
        (WithoutStatistics, "`statistics=` if the class"),
    ],
)
def test_mistaken_classes(cls, problem):
    with pytest.raises(WrapperError, match=problem):
        Net(LINEAR).lora(wrapper=cls)


def test_two_statistics_of_one_package_and_name_are_refused_together():
    others = tuple(OtherMeanSquare if need is MeanSquare else need for need in Informed.needs)
    wrappers = [Informed, informed(needs=others)]
    specs = [{**spec, "wrapper": cls} for spec, cls in zip(SPECS, wrappers, strict=True)]
    with pytest.raises(WrapperError, match=r"(?s)\.MeanSquare and .*OtherMeanSquare.*Rename one"):
        collected(wrapper=None, specs=specs)


PLUGIN = """
    from jno.lora import Statistic
    from tests.core.good_adapter import Good

    class Measure(Statistic):
        name = "input_mean"

        @staticmethod
        def value(mean):
            return {value}

    class {cls}(Good):
        needs = (Measure,)
        delta: object

        @classmethod
        def matrix(cls, layer):
            return layer.weight

        def __init__(self, base, rank, alpha, *, key, statistics):
            super().__init__(base, rank, alpha, key=key)
            self.delta = statistics["input_mean"]

    @hookimpl
    def jno_lora_wrappers():
        return [{cls}]
"""


def test_two_plugins_whose_statistics_have_the_name_of_a_built_in_one_never_meet(site, tmp_path):
    site.install("acme-lora", PLUGIN.format(cls="Acme", value="mean"))
    site.install("bolt-lora", PLUGIN.format(cls="Bolt", value="2 * mean"))
    specs = [{**spec, "wrapper": name} for spec, name in zip(SPECS, ("Acme", "Bolt"), strict=True)]
    statistics = collected(wrapper=None, specs=specs)
    adapted = jno.lora.apply_lora(MODEL, specs=specs, statistics=statistics, key=KEY)
    close(adapted.layers[0].delta, X.T @ X / 8)
    close(adapted.layers[1].delta, 2 * HIDDEN.T @ HIDDEN / 8)
    close(collected()["layers/0"]["input_mean"], X.mean(axis=0))
    statistics.save(tmp_path / "statistics.safetensors")
    again = Statistics.load(tmp_path / "statistics.safetensors")
    with pytest.raises(SelectionError, match=r"Acme starts from data.*\.input_mean \(5, 5\)"):
        Net(MODEL).lora(1, target="layers/1", wrapper="Acme", statistics=again)


# --- a total rank, spread over layers by their statistics


def statistics_of(**spectra):
    """Statistics whose covariance and gradient have these numbers on the diagonal."""
    return {
        path: {"input_covariance": np.diag(values), "gradient": np.sqrt(np.diag(values))}
        for path, values in spectra.items()
    }


def ranks(*args, **kwargs):
    return {row.path: row.rank for row in allocate(*args, **kwargs)}


def test_allocation_by_variance_compares_parts_of_each_layer():
    found = allocate(statistics_of(a=[8.0, 1.0, 1.0], b=[0.5, 0.3, 0.2]), budget=3)
    assert {row.path: row.rank for row in found} == {"a": 1, "b": 2}
    assert [spec.rank for spec in found.specs] == [1, 2] and found.specs[0].target == "^a$"
    assert "80.0%" in str(found) and "3 in all" in str(found)


def test_allocation_by_gradient_compares_energies():
    statistics = statistics_of(a=[8.0, 2.0, 1.0], b=[0.5, 0.3, 0.2])
    found = allocate(statistics, budget=3, method="gradient", least=0)
    assert {row.path: row.rank for row in found} == {"a": 3, "b": 0}
    assert [spec.target for spec in found.specs] == ["^a$"]


def test_allocation_keeps_its_bounds_and_counts_a_stack_whole():
    stacked = {"input_covariance": np.stack([np.diag([3.0, 2.0]), np.diag([1.0, 4.0])])}
    both = {"s": stacked, **statistics_of(a=[1.0, 1.0, 1.0])}
    assert ranks(both, budget=5, most=2) == {"s": 1, "a": 2}
    means = jax.tree.map(jnp.asarray, statistics_of(a=[1.0] * 6, b=[1.0] * 2))
    of_matrices = Statistics(means, {"a": (2, 6), "b": (6, 2)})
    assert ranks(of_matrices, budget=20) == {"a": 2, "b": 2}


def test_allocation_centres_by_the_mean():
    mean = np.array([3.0, 0.0])
    covariance = np.diag([1.0, 2.0]) + np.outer(mean, mean)
    both = {"a": {"input_covariance": covariance, "input_mean": mean}}
    found = allocate({**both, **statistics_of(b=[0.9, 0.1])}, budget=3)
    assert next(row.part for row in found if row.path == "a") == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 1}, "need 2"),
        ({"budget": 0}, "`budget` must be"),
        ({"least": -1}, "`least` at least 0.*-1"),
        ({"least": 3, "most": 1}, "`most` at least.*3 and 1"),
        ({"method": "luck"}, "'variance' or 'gradient'"),
        ({"statistics": {}}, "`statistics` are empty"),
        ({"statistics": {"a": {"input_mean": 0}}, "method": "gradient"}, "only input_mean"),
    ],
)
def test_an_allocation_that_makes_no_sense(arguments, message):
    with pytest.raises(SelectionError, match=message):
        allocate(**{"statistics": statistics_of(a=[1.0], b=[1.0]), "budget": 4, **arguments})
