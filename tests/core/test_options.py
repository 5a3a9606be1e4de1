"""`options`, further arguments of a constructor, and constructors without rank and alpha."""

import enum
import functools
import json
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    CheckpointError,
    LoRAWrapper,
    Net,
    SelectionError,
    WrapperError,
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
from jno.lora._contract.constructing import construct, constructor_problem

from .asking import run
from .good_adapter import float_of
from .toys import MODEL_LINEARS, ToyLinear, ToyScale, UserEmbedding, adapters_in, same, shaken


class Keeping(ToyScale):
    """Keeps an option as a static field."""

    kept: object = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, kept=1.0):
        ToyScale.__init__(self, base, rank, alpha, key=key)
        self.kept = kept
        self.gain = jnp.full(base.out_features, kept, jnp.float32)


def test_a_number_of_numpy_may_be_kept_as_a_static_field_and_an_array_is_warned_of(model, getkey):
    adapt = functools.partial(apply_lora, model, 1, key=getkey(), wrapper=Keeping)
    for number in (np.float32(2), np.bool_(True), jnp.bfloat16.dtype.type(2)):
        adapted = adapt(options={"kept": number})
        assert adapted.head.kept == number and not eqx.is_array(adapted.head.kept)
        assert merge_lora(adapted).head.weight[0, 0] == float(number) * model.head.weight[0, 0]
    two = jnp.float32(2)
    with pytest.warns(UserWarning, match="set as static"):
        adapted = adapt(options={"kept": two})
    assert adapted.head.kept is two
    assert merge_lora(adapted).head.weight[0, 0] == 2 * model.head.weight[0, 0]


@pytest.mark.parametrize(
    ("wrapper", "option", "said"),
    [
        (Keeping, "kpt", ".\n  - kpt: did you mean 'kept'?\nIt takes kept."),
        (ToyLinear, "kept", ".\nIt takes none."),
        (Keeping, "rank", "It takes kept."),
    ],
)
def test_an_option_that_the_adapter_lacks_is_named_before_any_adapter_is_built(
    model, getkey, wrapper, option, said
):
    class Unbuilt(ToyScale):
        def __init__(self, base, rank, alpha, *, key, **options):
            raise AssertionError

    specs = [{"target": "encoder", "wrapper": Unbuilt}, {"target": "head"}]
    call = {"rank": 1, "wrapper": wrapper, "specs": specs, "options": {option: 1}}
    where = f"{wrapper.__name__}, the adapter for the Linear at 'head', has no option {option!r}"
    for function in (plan_lora, functools.partial(apply_lora, key=getkey())):
        with pytest.raises(SelectionError, match=re.escape(where)) as caught:
            function(model, **call)
        assert said in str(caught.value)


class Way(enum.Enum):
    UP = 1
    DOWN = 2


class Told(ToyScale):
    """Keeps an option as a static field, and in no array."""

    told: Any = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, told=Way.UP):
        ToyScale.__init__(self, base, rank, alpha, key=key)
        self.told = told


def test_an_option_that_a_file_would_lose_is_refused_and_values_without_equality_are_not():
    def adapted(told):
        linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        return Told(linear, 1, 1.0, key=jax.random.key(0), told=told)

    for told in (Way.UP, jnp.tanh, float("nan")):
        assert list(extract_adapters([adapted(told)])) == ["0"]
    for told in (Way.DOWN, [1], float("inf")):
        said = re.escape(f"`told`, which is {told!r}, would be {Way.UP!r}")
        with pytest.raises(WrapperError, match=f"(?s){said}.*restore it by `options_of`"):
            extract_adapters([adapted(told)] * 2)


class Blocks(ToyScale):
    """A gain for each of `blocks` equal parts of the output, kept in a static field as well."""

    blocks: int = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        exact = type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)
        return exact and leaf.weight.ndim >= 2

    @classmethod
    def stack_ndim(cls, leaf) -> int:
        return leaf.weight.ndim - 2

    def __init__(self, base, rank, alpha, *, key, blocks=1):
        self.base, self.rank, self.alpha, self.blocks = base, rank, alpha, blocks
        dtype = float_of(base.weight).dtype
        self.gain, self.constant = jnp.zeros(blocks, dtype), jnp.zeros((), dtype)

    def merge(self):
        W = float_of(self.base.weight)
        gain = jnp.repeat(self.gain + self.constant, W.shape[0] // self.blocks)
        gain = self.alpha / self.rank * gain
        weight = (W * (1 + gain[:, None])).astype(self.base.weight.dtype)
        return eqx.tree_at(lambda m: m.weight, self.base, weight)

    @classmethod
    def options_of(cls, state):
        return {"blocks": state["gain"].shape[0]}


OPTIONS = {"blocks": 3}


def test_a_file_brings_back_an_option_that_changes_shapes(getkey, tmp_path):
    keys, file = jax.random.split(getkey(), 2), tmp_path / "a.safetensors"
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 6, key=key))(keys)
    layers = [eqx.nn.Linear(4, 6, key=getkey()), stack]
    model = shaken(apply_lora(layers, 2, key=getkey(), wrapper=Blocks, options=OPTIONS))
    save_adapters(model, file)
    loaded = load_adapters(layers, file, wrappers=Blocks)
    assert same(loaded, model)
    assert [adapter.blocks for adapter in adapters_in(loaded).values()] == [3, 3]
    assert same(swap_adapters(layers, read_adapters(file, wrappers=Blocks)), model)
    forgetful = type("Blocks", (Blocks,), {"options_of": classmethod(lambda cls, state: {})})
    with pytest.raises(CheckpointError, match=r"gain: expected shape \(1,\), got \(3,\)"):
        load_adapters(layers, file, wrappers=forgetful)


class OutputGain(LoRAWrapper):
    """Multiplies each output by a number."""

    adapter_fields = ("gain",)
    base: eqx.nn.Linear
    gain: jax.Array

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 2

    def __init__(self, base, *, key):
        self.base, self.gain = base, jnp.ones(base.weight.shape[-2])

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        weight = self.gain[:, None] * self.base.weight
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


def test_an_adapter_without_rank_has_none_unless_it_declares_the_field(getkey):
    class Forgetful(OutputGain):
        rank: int = eqx.field(static=True)

    linear = eqx.nn.Linear(3, 2, key=getkey())
    adapter = OutputGain(linear, key=getkey())
    assert adapter.rank is None and adapter.alpha is None
    with pytest.raises(TypeError, match="rank"):
        Forgetful(linear, key=getkey())
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))(jax.random.split(getkey(), 3))
    adapted = shaken(apply_lora(stack, key=getkey(), wrapper=OutputGain))
    assert adapted.gain.shape == (3, 2)
    assert jnp.allclose(merge_lora(adapted).weight, 1.25 * stack.weight)


def test_a_call_may_leave_the_rank_out_or_give_it_to_layers_that_use_it(model, getkey):
    for arguments in ({}, {"rank": 4, "alpha": 8.0}):
        row = plan_lora(model, target="head", wrapper=OutputGain, **arguments).wrapped[0]
        assert row.rank is None and row.alpha is None
    with pytest.raises(SelectionError, match="at least 1, but is 0"):
        apply_lora(model, 0, key=getkey(), wrapper=OutputGain)
    with pytest.raises(SelectionError, match=r"rank of the call must be .* but is missing"):
        apply_lora(model, key=getkey(), wrapper=[OutputGain, ToyLinear])
    both = [OutputGain, UserEmbedding]
    adapted = apply_lora(model, 2, 3.0, key=getkey(), wrapper=both)
    plan = plan_lora(adapted, 2, wrapper=both)
    assert {(row.path, row.rank, row.alpha) for row in plan if row.wrapper is not None} == {
        ("embedding", 2, 3.0),
        *((path, None, None) for path in MODEL_LINEARS),
    }


class FormerGain(OutputGain):
    """What `OutputGain` was when it took a rank."""

    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, key=key)
        self.rank, self.alpha = rank, alpha


FormerGain.__name__ = "OutputGain"


def test_reports_sets_and_files_cope_without_a_rank(model, getkey, tmp_path):
    adapted = shaken(apply_lora(model, key=getkey(), wrapper=OutputGain))
    report = lora_report(adapted, merge_error=True)
    assert [(row.rank, row.alpha) for row in report.rows] == [(None, None)] * 3
    shown = [str(report), str(Net(model).lora(wrapper=OutputGain).summary())]
    assert not any("None" in text for text in shown)
    assert same(unwrap_lora(adapted), model)
    adapters = extract_adapters(adapted)
    assert {(one.rank, one.alpha) for one in adapters.adapters.values()} == {(None, None)}
    assert same(swap_adapters(model, adapters), adapted)
    file = tmp_path / "gains.safetensors"
    save_adapters(adapted, file)
    assert same(load_adapters(model, file, wrappers=OutputGain), adapted)
    described = json.loads(run("inspect", str(file), "--json"))["adapters"]
    assert {(one["rank"], one["alpha"]) for one in described} == {(None, None)}

    # A file from when the adapter took a rank is read.
    former = shaken(apply_lora(model, 4, 8.0, key=getkey(), wrapper=FormerGain))
    save_adapters(former, file)
    loaded = load_adapters(model, file, wrappers=OutputGain)
    assert type(loaded.head) is OutputGain and loaded.head.rank is None
    assert jnp.array_equal(loaded.head.gain, former.head.gain)


@pytest.mark.parametrize(
    ("signature", "given"),
    {
        "(self, base, alpha, rank, *, key)": {"rank": 3, "alpha": 7.0},
        "(self, base, *, key, rank, alpha)": {"rank": 3, "alpha": 7.0},
        "(self, base, *, alpha=1.0, key, **options)": {"alpha": 7.0, "options": {}},
        "(self, base, rank, *, key)": {"rank": 3},
        "(self, base, *, key)": {},
    }.items(),
)
def test_rank_and_alpha_go_by_name(signature, given):
    scope = {}
    exec(f"def __init__{signature}: self.given = locals()", scope)
    cls = type("Constructed", (), {"__init__": scope["__init__"], "needs": ()})
    arguments = construct(cls, "base", 3, 7.0, key=jax.random.key(0)).given
    assert {n: x for n, x in arguments.items() if n not in ("self", "base", "key")} == given
    assert constructor_problem(cls) is None


def test_options_reach_the_constructor_and_a_spec_may_have_its_own(model, getkey):
    class Open(Keeping):
        def __init__(self, base, rank, alpha, *, key, **options):
            Keeping.__init__(self, base, rank, alpha, key=key, kept=len(options))

    specs = [
        {"target": "head", "options": {"kept": 3.0}},
        {"target": "encoder/0", "wrapper": Open, "options": {"anything": 1}},
        {},
    ]
    adapted = apply_lora(
        model, 1, key=getkey(), wrapper=Keeping, specs=specs, options={"kept": 2.0}
    )
    layers = (adapted.head, *adapted.encoder)
    assert [layer.gain[0] for layer in layers] == [3.0, 1.0, 2.0]
