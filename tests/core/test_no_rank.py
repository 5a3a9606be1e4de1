"""Adapters that have no use for a rank or a scale take neither, and everything copes."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import (
    LoRAWrapper,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_report,
    merge_lora,
    plan_lora,
    read_adapters,
    save_adapters,
    swap_adapters,
    unwrap_lora,
)
from jno.lora._contract import construct

from .toys import MODEL_LINEARS, ToyLinear, UserEmbedding, adapters_in, same, shaken


class OutputGain(LoRAWrapper):
    """Multiplies each output by a number."""

    adapter_fields = ("gain",)
    base: eqx.nn.Linear
    gain: jax.Array

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear

    def __init__(self, base, *, key):
        self.base, self.gain = base, jnp.ones(base.weight.shape[-2])

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        weight = self.gain[:, None] * self.base.weight
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


class Options(OutputGain):
    """Takes options, and an alpha."""

    alpha: float = eqx.field(static=True)

    def __init__(self, base, *, key, alpha, start=1.0):
        self.base, self.alpha = base, alpha
        self.gain = jnp.full(base.out_features, start)


class InAStack(OutputGain):
    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 2


class RankedLayer(eqx.Module):
    inner: eqx.nn.Linear
    rank: int = eqx.field(static=True)

    @property
    def weight(self):
        return self.inner.weight


def test_an_adapter_without_rank_has_none(getkey):
    adapter = OutputGain(eqx.nn.Linear(3, 2, key=getkey()), key=getkey())
    assert adapter.rank is None and adapter.alpha is None
    layer = RankedLayer(eqx.nn.Linear(3, 2, key=getkey()), 5)
    assert OutputGain(layer, key=getkey()).rank is None


def test_a_rank_that_is_declared_and_not_set_is_still_an_error(getkey):
    class Forgetful(OutputGain):
        rank: int = eqx.field(static=True)

    with pytest.raises(TypeError, match="rank"):
        Forgetful(eqx.nn.Linear(3, 2, key=getkey()), key=getkey())


def test_a_call_may_leave_the_rank_out_or_give_one(model, getkey):
    for arguments in ({}, {"rank": 4, "alpha": 8.0}):
        adapted = apply_lora(model, key=getkey(), wrapper=OutputGain, **arguments)
        assert set(adapters_in(adapted)) == set(MODEL_LINEARS)
        row = plan_lora(model, target="head", wrapper=OutputGain, **arguments).wrapped[0]
        assert row.rank is None and row.alpha is None
    with pytest.raises(SelectionError, match="at least 1, but is 0"):
        apply_lora(model, 0, key=getkey(), wrapper=OutputGain)
    with pytest.raises(SelectionError, match=r"rank of the call must be .* but is missing"):
        apply_lora(model, key=getkey(), wrapper=[OutputGain, ToyLinear])


def test_a_rank_is_for_the_layers_that_use_one(model, getkey):
    adapted = apply_lora(model, 2, 3.0, key=getkey(), wrapper=[OutputGain, UserEmbedding])
    assert (adapted.embedding.rank, adapted.head.rank) == (2, None)
    plan = plan_lora(adapted, 2, wrapper=[OutputGain, UserEmbedding])
    assert {(row.path, row.rank, row.alpha) for row in plan if row.wrapper is not None} == {
        ("embedding", 2, 3.0),
        *((path, None, None) for path in MODEL_LINEARS),
    }
    assert "None" not in str(plan)
    assert adapted(1).shape == (2,)


def test_options_and_an_alpha_alone_are_given(model, getkey):
    settings = {"wrappers": Options, "options": {"start": 2.0}}
    head = apply_lora(model, 4, 3.0, key=getkey(), target="head", **settings).head
    assert (head.rank, head.alpha, head.gain[0]) == (None, 3.0, 2.0)
    with pytest.raises(
        SelectionError, match=r"'strt'(.|\n)*did you mean 'start'\?\nThere are start\."
    ):
        apply_lora(model, key=getkey(), wrapper=Options, options={"strt": 1})


def test_a_stack_is_adapted_slice_by_slice(getkey):
    keys = jax.random.split(getkey(), 3)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))(keys)
    adapted = shaken(apply_lora(stack, key=getkey(), wrapper=InAStack))
    assert adapted.gain.shape == (3, 2)
    assert jnp.allclose(merge_lora(adapted).weight, 1.25 * stack.weight)


def test_reports_and_filters_cope(model, getkey):
    adapted = apply_lora(model, key=getkey(), wrapper=OutputGain)
    report = lora_report(adapted, merge_error=True)
    assert [(row.rank, row.alpha) for row in report.rows] == [(None, None)] * 3
    assert "None" not in str(report) and "OutputGain" in str(report)
    assert "None" not in str(Net(model).lora(wrapper=OutputGain).summary())
    assert same(unwrap_lora(adapted), model)


def test_sets_cope(model, getkey):
    adapted = shaken(apply_lora(model, key=getkey(), wrapper=OutputGain))
    adapters = extract_adapters(adapted)
    assert {(one.rank, one.alpha) for one in adapters.adapters.values()} == {(None, None)}
    assert same(swap_adapters(model, adapters), adapted)


def test_a_file_holds_null_and_gives_the_adapters_again(model, getkey, tmp_path):
    adapted = shaken(apply_lora(model, key=getkey(), wrapper=OutputGain))
    file = tmp_path / "gains.safetensors"
    save_adapters(adapted, file)
    assert same(load_adapters(model, file, wrappers=OutputGain), adapted)
    read = read_adapters(file, wrappers=OutputGain)
    assert read.adapters["head"].rank is None and read.adapters["head"].alpha is None
    saved = json.loads(_header(file)["__metadata__"]["jno.lora"])["adapters"]["head"]
    assert saved["rank"] is None and saved["alpha"] is None


def test_a_file_from_when_the_adapter_took_a_rank_is_read(model, getkey, tmp_path):
    class Former(OutputGain):
        rank: int = eqx.field(static=True)
        alpha: float = eqx.field(static=True)

        def __init__(self, base, rank, alpha, *, key):
            self.base, self.rank, self.alpha = base, rank, alpha
            self.gain = jnp.ones(base.out_features)

    Former.__name__ = "OutputGain"
    adapted = shaken(apply_lora(model, 4, 8.0, key=getkey(), wrapper=Former))
    file = tmp_path / "gains.safetensors"
    save_adapters(adapted, file)
    loaded = load_adapters(model, file, wrappers=OutputGain)
    assert type(loaded.head) is OutputGain and loaded.head.rank is None
    assert jnp.array_equal(loaded.head.gain, adapted.head.gain)


def _header(file):
    raw = file.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def constructed_as(signature):
    """The arguments of a constructor with this signature for rank 3 and alpha 7, by its names."""
    scope = {}
    exec(f"def __init__{signature}: self.given = locals()", scope)
    cls = type("Constructed", (), {"__init__": scope["__init__"], "needs": ()})
    given = construct(cls, "base", 3, 7.0, key=jax.random.key(0)).given
    return {name: x for name, x in given.items() if name not in ("self", "base", "key")}


@pytest.mark.parametrize(
    ("signature", "given"),
    {
        "(self, base, rank, alpha, *, key)": {"rank": 3, "alpha": 7.0},
        "(self, base, alpha, rank, *, key)": {"rank": 3, "alpha": 7.0},
        "(self, base, r=4, a=1.0, *, key)": {"r": 3, "a": 7.0},
        "(self, base, r=4, alpha=1.0, *, key)": {"r": 3, "alpha": 7.0},
        "(self, base, rank, scale, *, key)": {"rank": 3, "scale": 7.0},
        "(self, base, r, a, /, *, key)": {"r": 3, "a": 7.0},
        "(self, base, *args, key)": {"args": (3, 7.0)},
        "(self, base, rank, *, key)": {"rank": 3},
        "(self, base, *, key, alpha)": {"alpha": 7.0},
        "(self, base, *, key)": {},
    }.items(),
)
def test_rank_and_alpha_go_by_name_or_else_by_position(signature, given):
    assert constructed_as(signature) == given
