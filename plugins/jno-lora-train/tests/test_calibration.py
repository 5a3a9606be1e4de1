"""Statistics of data: collected by `calibrate`, used by constructors, kept, spread as ranks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tests.core.good_adapter import Good

import jno.lora
from jno.lora import (
    LoRAWrapper,
    MatrixAdapter,
    Net,
    SelectionError,
    Statistic,
    WrapperError,
    extract_adapters,
)
from jno.lora.types import Statistics


class MeanSquare(Statistic):
    """A third party's own: the mean square of each output."""

    name = "mean_square"
    of = "outputs"

    @staticmethod
    def left(V: Any) -> Any:
        return jnp.ones((V.shape[0], 1), V.dtype)

    @staticmethod
    def right(V: Any) -> Any:
        return V**2

    @staticmethod
    def value(mean: Any) -> Any:
        return mean[0]


MEAN_SQUARE = f"{__name__.partition('.')[0]}.mean_square"


class OtherMeanSquare(MeanSquare):
    """A second statistic of one name in one package."""


class Informed(LoRAWrapper):
    """A low-rank update that starts in the directions of the largest inputs."""

    adapter_fields = ("lora_A", "lora_B")
    variant = "informed"
    needs = ("input_covariance", "input_mean", "output_covariance", "gradient", MeanSquare)

    base: Any
    lora_A: Any
    lora_B: Any
    seen: Any
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.weight.ndim - 2

    @classmethod
    def matrix(cls, layer: Any) -> Any:
        return layer.weight.astype(jnp.float32)

    def __init__(self, base: Any, rank: int, alpha: float, *, key: Any, statistics: Any):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.lora_A = jnp.linalg.eigh(statistics["input_covariance"])[1][:, -rank:].T
        self.lora_B = jnp.zeros((self.matrix(base).shape[0], rank))
        self.seen = statistics["mean_square"]

    def __call__(self, x: Any) -> Any:
        return self.base(x) + self.alpha / self.rank * (self.lora_B @ (self.lora_A @ x))

    def merge(self) -> Any:
        new = self.base.weight + self.alpha / self.rank * self.lora_B @ self.lora_A
        return eqx.tree_at(lambda m: m.weight, self.base, new)


def model_and_batches(seed: int = 0) -> tuple[Any, list[Any]]:
    keys = jax.random.split(jax.random.key(seed), 3)
    model = eqx.nn.MLP(3, 2, 5, 1, key=keys[0])
    return model, list(0.5 + jax.random.normal(keys[1], (2, 4, 3)))


def loss(model: Any, batch: Any) -> Any:
    return jnp.mean(jax.vmap(model)(batch) ** 2)


def calibrated(model: Any, batches: Any, loss: Any = loss, **options: Any) -> Statistics:
    return jno.lora.calibrate(model, batches, loss, wrapper=Informed, **options)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def hidden(model: Any, batches: Any) -> Any:
    """The inputs of the second layer, for all examples."""
    return jax.vmap(lambda x: jax.nn.relu(model.layers[0](x)))(jnp.concatenate(batches))


def test_statistics_are_means_over_all_examples() -> None:
    model, batches = model_and_batches()
    found = calibrated(model, batches)
    x, h = jnp.concatenate(batches), hidden(model, batches)
    assert list(found) == ["layers/0", "layers/1"] and len(found) == 2
    for path, rows in (("layers/0", x), ("layers/1", h)):
        close(found[path]["input_covariance"], rows.T @ rows / 8)
        close(found[path]["input_mean"], rows.mean(axis=0))
    y = jax.vmap(model)(x)
    close(found["layers/1"]["output_covariance"], y.T @ y / 8)
    close(found["layers/1"][MEAN_SQUARE], (y**2).mean(axis=0))
    grads = [eqx.filter_grad(loss)(model, batch) for batch in batches]
    mean = sum(grad.layers[0].weight for grad in grads) / 2
    close(found["layers/0"]["gradient"], mean)


def test_a_net_and_a_set_are_refused() -> None:
    net = Net(model_and_batches()[0]).lora(wrapper=Good)
    with pytest.raises(SelectionError, match=r"^calibrate takes a model.*calibrate\(net\.module, "):
        calibrated(net, [])
    with pytest.raises(SelectionError, match=r"^calibrate takes .* was given an AdapterSet"):
        calibrated(extract_adapters(net.module), [])


def test_batches_may_come_from_a_generator() -> None:
    model, batches = model_and_batches()
    from_list, from_generator = calibrated(model, batches), calibrated(model, iter(batches))
    close(from_list["layers/0"]["input_mean"], from_generator["layers/0"]["input_mean"])


def test_the_model_is_not_changed_by_a_probe() -> None:
    model, batches = model_and_batches()

    def checked(probed: Any, batch: Any) -> Any:
        y, expected = jax.vmap(probed)(batch), jax.vmap(model)(batch)
        return jnp.sum(jnp.where(jnp.all(y == expected), y, jnp.nan))

    calibrated(model, batches, checked)


@pytest.mark.parametrize("remat", [False, True])
def test_stacked_layers_run_by_a_scan(remat: bool) -> None:
    make = lambda key: eqx.nn.Linear(3, 3, key=key)  # noqa: E731
    stack = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 4))
    batch = jax.random.normal(jax.random.key(1), (5, 3))

    def run(layers: Any, x: Any) -> Any:
        arrays, rest = eqx.partition(layers, eqx.is_array)

        def step(x: Any, arrays: Any) -> Any:
            return jnp.tanh(eqx.combine(arrays, rest)(x)), x

        return jax.lax.scan(jax.checkpoint(step) if remat else step, x, arrays)

    found = calibrated(stack, [batch], lambda m, b: jnp.sum(jax.vmap(lambda x: run(m, x)[0])(b)))
    inputs = jax.vmap(lambda x: run(stack, x)[1], out_axes=1)(batch)
    close(found[""]["input_covariance"], jnp.einsum("lbi,lbj->lij", inputs, inputs) / 5)
    assert found[""]["gradient"].shape == (4, 3, 3)
    adapted = jno.lora.apply_lora(
        stack, 2, wrapper=Informed, statistics=found, key=jax.random.key(0)
    )
    assert adapted.lora_A.shape == (4, 2, 3) and adapted.seen.shape == (4, 3)


def test_a_layer_that_is_used_twice_counts_both_uses() -> None:
    layer, x = eqx.nn.Linear(3, 3, key=jax.random.key(0)), jnp.ones((1, 3))
    found = calibrated([layer], [x], lambda m, b: jnp.sum(jax.vmap(lambda x: m[0](m[0](x)))(b)))
    rows = jnp.stack([x[0], layer(x[0])])
    close(found["0"]["input_covariance"], rows.T @ rows / 2)


def test_sharded_layers_and_batches() -> None:
    model, batches = model_and_batches()
    mesh = Mesh(jax.devices()[:4], ("x",))
    batch = jax.device_put(jnp.concatenate(batches), NamedSharding(mesh, PartitionSpec("x")))
    wide = eqx.filter_shard(model, NamedSharding(mesh, PartitionSpec()))
    expected, found = calibrated(model, batches), calibrated(wide, [batch])
    close(found["layers/1"]["input_covariance"], expected["layers/1"]["input_covariance"])
    jno.lora.apply_lora(wide, 1, wrapper=Informed, statistics=found, key=jax.random.key(0))


def test_half_precision_layers_are_measured_in_float32() -> None:
    model, batches = model_and_batches()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, model)
    found = calibrated(half, [batch.astype(jnp.bfloat16) for batch in batches])
    assert all(x.dtype == jnp.float32 for x in found["layers/0"].values())


def test_a_sketch_keeps_few_columns_and_is_exact_for_a_low_rank(tmp_path: Any) -> None:
    layer = eqx.nn.Linear(12, 2, key=jax.random.key(0))
    rows = jax.random.normal(jax.random.key(1), (9, 3)) @ jax.random.normal(
        jax.random.key(2), (3, 12)
    )
    found = calibrated(layer, [rows], sketch=6)
    np.testing.assert_allclose(found[""]["input_covariance"], rows.T @ rows / 9, atol=1e-3)
    found.save(tmp_path / "statistics.safetensors")
    assert (tmp_path / "statistics.safetensors").stat().st_size < 4 * 12 * 12 + 900
    again = Statistics.load(tmp_path / "statistics.safetensors")
    close(again[""]["input_covariance"], found[""]["input_covariance"])


def test_a_sketch_of_stacked_layers() -> None:
    make = lambda key: eqx.nn.Linear(12, 12, key=key)  # noqa: E731
    stack = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 3))
    factors = (
        jax.random.normal(jax.random.key(1), (9, 3)),
        jax.random.normal(jax.random.key(2), (3, 12)),
    )

    def inputs(layers: Any, batch: Any) -> Any:
        arrays, rest = eqx.partition(layers, eqx.is_array)
        step = lambda x, arrays: (jax.vmap(eqx.combine(arrays, rest))(x), x)  # noqa: E731
        last, seen = jax.lax.scan(step, batch, arrays)
        return seen, last

    batch = factors[0] @ factors[1]
    found = calibrated(stack, [batch], lambda m, b: jnp.sum(inputs(m, b)[1]), sketch=6)
    seen = inputs(stack, batch)[0]
    expected = jnp.einsum("lbi,lbj->lij", seen, seen) / 9
    np.testing.assert_allclose(found[""]["input_covariance"], expected, atol=1e-3)


def test_statistics_are_saved_and_used_again(tmp_path: Any) -> None:
    model, batches = model_and_batches()
    found = calibrated(model, batches)
    found.save(tmp_path / "statistics.safetensors")
    again = Statistics.load(tmp_path / "statistics.safetensors")
    assert "layers/0" in str(again) and "input_covariance float32[3, 3]" in str(again)
    arguments = {"rank": 2, "wrappers": Informed, "key": jax.random.key(0)}
    one = jno.lora.apply_lora(model, statistics=found, **arguments)
    two = jno.lora.apply_lora(model, statistics=again, **arguments)
    assert eqx.tree_equal(one, two)


def test_another_file_is_refused(tmp_path: Any) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(jno.lora.CheckpointError, match="does not hold statistics"):
        Statistics.load(tmp_path / "other.safetensors")


def test_a_net_calibrates_in_one_call_and_restores_a_file(tmp_path: Any) -> None:
    model, batches = model_and_batches()
    net = Net(model).freeze().lora(rank=2, wrapper=Informed, calibrate=(batches, loss))
    given = Net(model).freeze()
    given.lora(rank=2, wrapper=Informed, statistics=calibrated(model, batches))
    assert eqx.tree_equal(net.module, given.module)
    net.save_adapters(tmp_path / "a.safetensors")
    loaded = Net(model).load_adapters(tmp_path / "a.safetensors", wrappers=Informed)
    assert eqx.tree_equal(loaded.module, net.module)


def test_statistics_and_calibrate_together_are_refused() -> None:
    model, batches = model_and_batches()
    with pytest.raises(SelectionError, match="not both"):
        Net(model).lora(wrapper=Informed, statistics={}, calibrate=(batches, loss))


def test_missing_statistics_are_an_error_that_shows_the_call() -> None:
    model, batches = model_and_batches()
    with pytest.raises(
        SelectionError, match=r"calibrate\(model, batches, loss, wrapper='informed'"
    ):
        Net(model).lora(wrapper=Informed)
    other = calibrated(eqx.nn.MLP(3, 2, 7, 1, key=jax.random.key(0)), batches)
    with pytest.raises(SelectionError, match=r"gradient \(5, 3\).*got .*gradient \(7, 3\)"):
        Net(model).lora(wrapper=Informed, statistics=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "`batches` is empty"),
        ({"loss": lambda m, b: jnp.sum(jax.vmap(m.layers[0])(b))}, "does not reach.*\n.*layers/1"),
        ({"batches": [jnp.full((4, 3), jnp.nan)]}, "NaN or infinity"),
        ({"target": "nowhere"}, "nowhere"),
        ({"sketch": 0}, "`sketch` must be"),
    ],
)
def test_unusable_arguments(arguments: Any, message: str) -> None:
    model, batches = model_and_batches()
    with pytest.raises(SelectionError, match=message):
        calibrated(**({"model": model, "batches": batches} | arguments))


def test_adapters_without_needs_have_nothing_to_collect() -> None:
    class Plain(Informed):
        needs = ()

        def __init__(self, base: Any, rank: int, alpha: float, *, key: Any):
            self.base = base

    model, batches = model_and_batches()
    with pytest.raises(SelectionError, match="needs statistics"):
        jno.lora.calibrate(model, batches, loss, wrapper=Plain)


def test_inputs_that_are_not_rows_of_the_matrix() -> None:
    class Turned(eqx.nn.Linear):
        def __call__(self, x: Any, *, key: Any = None) -> Any:
            return super().__call__(x.T[0])

    layer, batch = Turned(3, 2, key=jax.random.key(0)), jnp.ones((1, 3, 1))
    with pytest.raises(WrapperError, match="Define `inputs_of`"):
        calibrated(layer, [batch])


@pytest.mark.parametrize(
    ("needs", "problem"),
    [
        (["gradient"], "must be a tuple"),
        (("hessian",), "neither one of input_covariance"),
        ((Statistic,), "neither one of"),
    ],
)
def test_mistaken_needs(needs: Any, problem: str) -> None:
    wrong = type("Wrong", (Informed,), {"needs": needs})
    with pytest.raises(WrapperError, match=problem):
        Net(eqx.nn.Linear(3, 2, key=jax.random.key(0))).lora(wrapper=wrong)


def test_two_statistics_of_one_package_and_name_are_refused_together() -> None:
    class OtherInformed(Informed):
        needs = tuple(OtherMeanSquare if need is MeanSquare else need for need in Informed.needs)

    model, batches = model_and_batches()
    specs = [
        {"target": "layers/0", "wrapper": Informed},
        {"target": "layers/1", "wrapper": OtherInformed},
    ]
    with pytest.raises(WrapperError, match=r"(?s)\.MeanSquare and .*OtherMeanSquare.*Rename one"):
        jno.lora.calibrate(model, batches, loss, wrapper=None, specs=specs)
    specs[1]["wrapper"] = Informed
    assert len(jno.lora.calibrate(model, batches, loss, wrapper=None, specs=specs)) == 2


FISHER = """
    import jax.numpy as jnp
    from jno.lora import Statistic

    class Measure(Statistic):
        name = "{name}"

        @staticmethod
        def value(mean):
            return {value}

    class {cls}(LoRAWrapper):
        adapter_fields = ("delta",)
        needs = (Measure,)
        base: object
        delta: object

        @classmethod
        def applies_to(cls, leaf):
            return isinstance(leaf, eqx.nn.Linear)

        @classmethod
        def matrix(cls, layer):
            return layer.weight

        def __init__(self, base, *, key, statistics):
            self.base, self.delta = base, statistics["{name}"]

        def __call__(self, x):
            return self.base(x)

        def merge(self):
            return self.base

    @hookimpl
    def jno_lora_wrappers():
        return [{cls}]
"""


def test_two_plugins_whose_statistics_have_one_name_never_meet(site: Any, tmp_path: Any) -> None:
    site.install("acme-lora", FISHER.format(name="fisher", cls="Acme", value="mean"))
    site.install("bolt-lora", FISHER.format(name="fisher", cls="Bolt", value="2 * mean"))
    model, batches = model_and_batches()
    specs = [
        {"target": "layers/0", "rank": 1, "wrapper": "Acme"},
        {"target": "layers/1", "rank": 1, "wrapper": "Bolt"},
    ]
    statistics = jno.lora.calibrate(model, batches, loss, wrapper=None, specs=specs)
    adapted = jno.lora.apply_lora(model, specs=specs, statistics=statistics, key=jax.random.key(0))
    x, h = jnp.concatenate(batches), hidden(model, batches)
    close(adapted.layers[0].delta, x.T @ x / 8)
    close(adapted.layers[1].delta, 2 * h.T @ h / 8)
    statistics.save(tmp_path / "statistics.safetensors")
    again = Statistics.load(tmp_path / "statistics.safetensors")
    with pytest.raises(SelectionError, match=r"Acme starts from data.*\.fisher \(5, 5\)"):
        Net(model).lora(1, target="layers/1", wrapper="Acme", statistics=again)


def test_a_plugin_s_statistic_with_a_built_in_name_reaches_that_plugin_alone(site: Any) -> None:
    site.install("acme-lora", FISHER.format(name="input_mean", cls="Acme", value="2 * mean"))
    model, batches = model_and_batches()
    mean = calibrated(model, batches)["layers/0"]["input_mean"]
    close(mean, jnp.concatenate(batches).mean(axis=0))
    statistics = jno.lora.calibrate(model, batches, loss, wrappers="Acme", target="layers/0")
    adapted = Net(model).lora(1, target="layers/0", wrapper="Acme", statistics=statistics).module
    x = jnp.concatenate(batches)
    close(adapted.layers[0].delta, 2 * x.T @ x / 8)


def test_needs_without_a_matrix_or_a_keyword() -> None:
    class NoMatrix(Informed):
        matrix = MatrixAdapter.matrix

    class NoKeyword(Informed):
        def __init__(self, base: Any, rank: int, alpha: float, *, key: Any):
            self.base = base

    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    for cls, problem in (
        (NoMatrix, "`matrix` must say"),
        (NoKeyword, "`statistics=` if the class"),
    ):
        with pytest.raises(WrapperError, match=problem):
            Net(layer).lora(wrapper=cls)


def test_a_layer_with_zero_gradients_is_reported_as_not_reached() -> None:
    class ByGradient(Informed):
        needs = ("gradient",)

    model, batches = model_and_batches()
    with pytest.raises(SelectionError, match=r"does not reach.*\n.*layers/1"):
        jno.lora.calibrate(
            model,
            batches,
            lambda m, b: jnp.sum(jax.vmap(m.layers[0])(b)),
            wrapper=ByGradient,
        )


def test_allocation_gives_no_more_directions_than_a_matrix_has() -> None:
    layers = [
        eqx.nn.Linear(6, 2, key=jax.random.key(0)),
        eqx.nn.Linear(2, 6, key=jax.random.key(1)),
    ]
    batch = jax.random.normal(jax.random.key(2), (9, 6))
    found = calibrated(layers, [batch], lambda m, b: jnp.sum(jax.vmap(lambda x: m[1](m[0](x)))(b)))
    assert [row.rank for row in jno.lora.allocate(found, budget=20)] == [2, 2]


def test_calibration_under_shard_map() -> None:
    model, batches = model_and_batches()
    mesh = Mesh(jax.devices()[:4], ("x",))

    def sharded(model: Any, batch: Any) -> Any:
        def local(batch: Any) -> Any:
            return jax.lax.pmean(loss(model, batch), "x")

        specs = {"in_specs": PartitionSpec("x"), "out_specs": PartitionSpec()}
        return jax.shard_map(local, mesh=mesh, **specs)(batch)

    found = calibrated(model, [jnp.concatenate(batches)], sharded)["layers/0"]
    close(found["input_covariance"], calibrated(model, batches)["layers/0"]["input_covariance"])


def test_calibration_on_explicit_axes() -> None:
    model, batches = model_and_batches()
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    whole = eqx.filter_shard(model, NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(jnp.concatenate(batches), NamedSharding(mesh, PartitionSpec("x")))
    found = calibrated(whole, [batch])["layers/0"]
    close(found["input_covariance"], calibrated(model, batches)["layers/0"]["input_covariance"])


def test_a_layer_that_is_called_by_keyword() -> None:
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    with pytest.raises(WrapperError, match="by keyword"):
        calibrated(layer, [jnp.ones((2, 3))], lambda m, b: jnp.sum(jax.vmap(lambda x: m(x=x))(b)))


def test_the_pair_of_a_net_is_checked() -> None:
    model, batches = model_and_batches()
    with pytest.raises(SelectionError, match="pair `\\(batches, loss\\)`"):
        Net(model).lora(wrapper=Informed, calibrate=(loss, batches))


def test_a_covariance_that_is_too_large_is_refused_before_it_is_made() -> None:
    wide = eqx.filter_eval_shape(lambda: eqx.nn.Linear(50_000, 2, key=jax.random.key(0)))
    with pytest.raises(SelectionError, match=r"50000 x 50000.*9\.3 GiB.*sketch=512"):
        calibrated(wide, [jnp.ones((1, 50_000))])
