"""The zoo as the core's default: what it selects, and when it is imported."""

import json
import re
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from tests.core.toys import Block, ToyBlock, ToyScale

import jno.lora
import jno_lora_zoo
from jno.lora import Net, Registry, apply_lora, plan_lora
from jno.lora.extending import default_adapters
from jno_lora_zoo.plugin import jno_lora_defaults


def layers(key):
    return {
        "linear": eqx.nn.Linear(3, 2, key=key),
        "scalar": eqx.nn.Linear("scalar", 2, key=key),
        "conv1d": eqx.nn.Conv1d(2, 3, 3, key=key),
        "conv2d": eqx.nn.Conv2d(2, 2, 3, groups=2, key=key),
        "conv3d": eqx.nn.Conv3d(2, 3, 1, key=key),
        "transposed": [
            eqx.nn.ConvTranspose1d(2, 3, 3, key=key),
            eqx.nn.ConvTranspose2d(2, 3, 3, key=key),
            eqx.nn.ConvTranspose3d(2, 3, 3, key=key),
        ],
        "embedding": eqx.nn.Embedding(4, 3, key=key),
        "norm": eqx.nn.LayerNorm(3),
        "other": [jax.numpy.ones(3), jax.nn.relu, None, 1.0],
    }


def chosen(model, **kwargs):
    return {row.path: row.wrapper for row in plan_lora(model, 1, **kwargs).wrapped}


def test_the_defaults_are_lora_on_linear_and_convolution_layers_and_auto_begins_with_them(getkey):
    model = layers(getkey())
    assert chosen(model) == {
        "linear": jno_lora_zoo.LoRALinear,
        "scalar": jno_lora_zoo.LoRALinear,
        "conv1d": jno_lora_zoo.LoRAConv,
        "conv2d": jno_lora_zoo.LoRAConv,
        "conv3d": jno_lora_zoo.LoRAConv,
    }
    assert {row.distribution for row in plan_lora(model, 1).wrapped} == {"jno-lora-zoo"}
    assert chosen(model, wrapper="auto").items() >= chosen(model).items()
    with pytest.raises(jno.lora.SelectionError, match=r"(?s)0: ConvTranspose1d, .*can adapt none"):
        Net(model["transposed"]).lora(1)


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa"])
def test_the_default_alpha_gives_a_scale_of_one_where_a_layer_clamps_the_rank(variant, getkey):
    model = eqx.nn.MLP(2, 1, 16, 1, key=getkey())
    first, last = Net(model).lora(8, wrapper=variant).module.layers
    assert (first.rank, first.alpha, last.rank, last.alpha) == (2, 2.0, 1, 1.0)
    first, _ = Net(model).lora(8, alpha=8, wrapper=variant).module.layers
    assert (first.rank, first.alpha) == (2, 8.0)  # as the call says


@pytest.mark.parametrize("name", ["IA3Linear", "OFTLinear", "IA3Recurrent"])
def test_a_method_without_an_alpha_ignores_the_one_that_jno_passes(name, getkey):
    layer, key = eqx.nn.Linear(3, 4, key=getkey()), getkey()
    layer = eqx.nn.GRUCell(3, 4, key=key) if name == "IA3Recurrent" else layer
    cls = getattr(jno_lora_zoo, name)
    by_keyword = cls(layer, rank=2, alpha=1.0, key=key)
    assert by_keyword.alpha is None
    assert eqx.tree_equal(by_keyword, cls(layer, 2, 1.0, key=key), cls(layer, 2, key=key))


def test_every_method_is_a_variant_of_its_layers_and_another_one_inside_a_norm():
    registry = Registry()
    (record,) = (r for r in registry.records() if r.distribution == "jno-lora-zoo")
    assert record.status == "loaded" and record.defaults == jno_lora_defaults
    for method in (method.__name__ for method in jno_lora_zoo.METHODS):
        inside = registry.zoo_class(f"{method}InNorm")
        linear = registry.zoo_class(f"{method}Linear")
        assert registry.resolve(f"jno-lora-zoo:{method}Linear") == (linear,)
        family = registry.resolve(linear.variant)
        names = {cls.__name__ for cls in family}
        assert {f"{method}{k}" for k in ("Linear", "Conv", "ConvTranspose")} <= names
        assert registry.resolve(method) == family
        assert inside.variant == f"{linear.variant}-in-norm"
        assert registry.resolve(inside.variant) == (inside,)


SCRIPT = """
    import json, sys
    def made():
        classes = [jno.lora.LoRAWrapper]
        for cls in classes:
            classes += cls.__subclasses__()
        return sorted({c.__name__ for c in classes if c.__module__ == "jno_lora_zoo.adapters"})
    def loaded():
        names = {m.split(".")[0] for m in sys.modules}
        return sorted(n for n in names if n.startswith(("jno_lora", "importlib_metadata")))
    import jno.lora
    steps = {"import": loaded()}
    import equinox as eqx, jax
    net = jno.lora.Net([eqx.nn.Linear(2, 2, key=jax.random.key(0))])
    net.freeze()
    steps["Net"] = loaded()
    net.lora(1)
    steps["lora"] = loaded()
    steps["made by lora"] = made()
    from jno.lora import OFTConv
    steps["made by name"] = made()
    steps["name"] = loaded()
    dir(jno.lora)
    steps["dir"] = loaded()
    print(json.dumps(steps))
"""


def test_the_zoo_alone_is_imported_and_only_when_an_adapter_is_asked_for():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert steps["import"] == steps["Net"] == []
    for step in ("lora", "name", "dir"):
        assert steps[step] == ["importlib_metadata", "jno_lora_zoo"]
    # A class of the zoo is made when it is named.
    assert steps["made by lora"] == ["LoRAConv", "LoRALinear"]
    assert steps["made by name"] == ["LoRAConv", "LoRALinear", "OFTConv"]


class Plain(eqx.Module):
    """A layer that nothing adapts."""

    weight: jax.Array


class Registered(eqx.Module):
    """A layer whose class has adapters of its own."""

    weight: jax.Array


class Subclass(Registered):
    """The adapters of a class serve its subclasses."""


class Gain(ToyScale):
    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, Registered)


@default_adapters.register(Registered)
def _(layer):
    return (Gain,)


@pytest.mark.parametrize("cls", [Registered, Subclass])
def test_registered_layers_bring_adapters_for_calls_that_name_none(getkey, cls):
    linear = eqx.nn.Linear(2, 2, key=getkey())
    model = {"layer": cls(jnp.ones((2, 2))), "plain": linear}
    rows = plan_lora(model, 1).rows
    assert {row.path: row.wrapper for row in rows} == {
        "layer": Gain,
        "plain": jno_lora_zoo.LoRALinear,
    }
    assert default_adapters(linear) == ()
    # Adapters that the call names stand alone.
    assert [row.path for row in plan_lora(model, 1, wrapper=jno_lora_zoo.LoRALinear).wrapped] == [
        "plain"
    ]


def test_a_container_claimed_by_auto_hides_no_layer_of_the_defaults(getkey):
    class AutoBlock(ToyBlock):
        auto = True

    registry = Registry()
    registry.register(AutoBlock)
    plan = plan_lora(Block(2, key=getkey()), 1, wrapper="auto", registry=registry)
    assert {row.path: row.wrapper for row in plan.wrapped} == {
        "up": jno_lora_zoo.LoRALinear,
        "down": jno_lora_zoo.LoRALinear,
    }


def test_a_plan_says_what_keeps_a_layer_from_being_adapted(getkey):
    odd = Plain(jnp.ones((5, 5, 3, 8)))
    model = {
        "odd": odd,
        "even": eqx.nn.Linear(2, 2, key=getkey()),
        "vector": Plain(jnp.ones(3)),
    }
    row, vector = plan_lora(model, 1).having("no wrapper applies")
    assert (row.path, row.layer, vector.path) == ("odd", "Plain", "vector")
    assert "(5, 5, 3, 8), and without in_channels, out_channels" in row.reason
    assert row.explanation == f"no wrapper applies: {row.reason}"
    assert vector.reason is None and vector.explanation == "no wrapper applies"
    with pytest.raises(jno.lora.SelectionError, match=re.escape(row.reason)):
        apply_lora(odd, 1, key=jax.random.key(0))
