"""Code as a user writes it: `make typecheck` reads it, and the tests run it.

`assert_type` is for the type checker, which fails if a type is another one, or `Any`.
"""

from typing import Any, assert_type

import equinox as eqx
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from jno.lora import (
    AdapterSet,
    DoRALinear,
    LoraReport,
    LoRAWrapper,
    Net,
    Plan,
    PlanRow,
    PluginRecord,
    ReportRow,
    apply_lora,
    citation,
    extract_adapters,
    lora_report,
    merge_lora,
    plan_lora,
    registered,
    unwrap_lora,
)
from jno_lora_combine import (
    AdapterEffect,
    AdapterEffects,
    UpdateReport,
    adapter_effects,
    combine,
    combine_with_report,
    plot_adapters,
)
from jno_lora_compare import Comparison, ComparisonRow, compare


class Gain(LoRAWrapper):
    """An adapter in the documented form: annotated, and without a type error."""

    adapter_fields = ("gain",)
    variant = "gain"
    base: eqx.nn.Linear
    gain: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return type(leaf) is eqx.nn.Linear

    def __init__(self, base: eqx.nn.Linear, rank: int, alpha: float, *, key: jax.Array):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain = jnp.ones(base.weight.shape[0])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.merge()(x)

    def merge(self) -> eqx.nn.Linear:
        weight = self.gain[:, None] * self.base.weight
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


def model_of(key: int) -> eqx.nn.MLP:
    return eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(key))


def test_a_handle_chains_and_keeps_its_type():
    net = Net(model_of(0))
    assert_type(net.freeze().lora(2, 4.0, wrapper=[Gain, "dora", DoRALinear]), Net)
    assert_type(net.mask("layers").unfreeze(), Net)
    assert_type(net.plan(2, target="none of them|layers"), Plan)
    assert_type(net.summary(merge_error=True), LoraReport)
    trainable, _ = net.partition()
    assert_type(net.update(trainable).merge(), Net)
    y: jax.Array = net(jnp.ones(3))
    assert y.shape == (2,)


def test_the_functions_return_the_model_s_own_type():
    adapted = apply_lora(model_of(0), 2, key=jax.random.key(1), wrapper=Gain)
    assert_type(adapted, eqx.nn.MLP)
    assert_type(merge_lora(adapted), eqx.nn.MLP)
    assert_type(unwrap_lora(adapted), eqx.nn.MLP)
    assert_type(citation(adapted), str)


def test_combining_gives_a_set_and_a_report():
    adapters = extract_adapters(Net(model_of(0)).lora(1).module)
    assert_type(combine([adapters, adapters], [0.5, 0.5]), AdapterSet)
    pair = combine_with_report([adapters], [1.0], "svd", rank=1)
    assert_type(pair, tuple[AdapterSet, UpdateReport])


def test_tables_hold_typed_rows():
    plan = plan_lora(model_of(0), 2, wrapper="lora")
    assert_type(next(iter(plan)), PlanRow)
    assert_type(plan.wrapped, tuple[PlanRow, ...])
    report = lora_report(Net(model_of(0)).lora(2, wrapper=Gain).module)
    assert_type(report.rows[0], ReportRow)
    assert_type(report.rows[0].wrapper, type[LoRAWrapper])
    assert_type(registered(), tuple[PluginRecord, ...])


def test_effects_and_pictures():
    effects = adapter_effects(Net(model_of(0)).lora(1).module)
    assert_type(effects, AdapterEffects)
    assert_type(effects.rows[0], AdapterEffect)
    assert_type(effects.rows[0].singular_values, tuple[float, ...])
    assert_type(plot_adapters(effects), Figure)


def test_a_comparison():
    def loss(model: eqx.nn.MLP, batch: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(model)(batch) ** 2)

    made = compare(model_of(0), loss, [jnp.ones((2, 3))], [Gain], steps=1, key=jax.random.key(0))
    assert_type(made, Comparison)
    assert_type(made.rows[0], ComparisonRow)
    assert_type(made.rows[0].final_loss, float | None)
    assert made.rows[0].error is None


def test_a_zoo_class_is_known_to_the_type_checker():
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    adapter = Net(layer).lora(1, wrapper=DoRALinear).module
    assert isinstance(adapter, DoRALinear)
    assert_type(adapter.rank, int)
    assert_type(DoRALinear(layer, 1, 1.0, key=jax.random.key(1), multiplier=2.0), DoRALinear)
    assert adapter.magnitude.shape == (2,)
