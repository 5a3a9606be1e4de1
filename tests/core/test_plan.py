"""`plan_lora`: a row for every candidate, and errors for what selects nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

from jno.lora import JnoLoraWarning, Net, Registry, SelectionError, apply_lora, plan_lora

from .asking import wrapped
from .toys import ToyBlock, ToyLinear, ToyScale, UserEmbedding, adapters_in


def rows_of(plan):
    return {row.path: row for row in plan}


def refused(model, **kwargs):
    """The error of a call that selects nothing, and of the plan of it."""
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, key=jax.random.key(0), **kwargs)
    plan = plan_lora(model, 1, **kwargs)
    assert plan.problem is not None and plan.problem in str(caught.value)
    assert plan.problem.splitlines()[0] in str(plan) and "plan_lora" in str(caught.value)
    return str(caught.value)


def test_each_candidate_has_a_row_with_its_status(model, getkey, site):
    adapted = apply_lora(model, 1, 5.0, key=getkey(), target="encoder/0", wrapper=ToyScale)
    model = {"model": adapted, "other": [model.head, "x", jax.nn.relu]}
    plan = plan_lora(model, 2, 4.0, target="model/", mask="encoder|/head", wrapper=ToyLinear)
    rows = rows_of(plan)
    assert list(rows) == [
        *("model", "model/embedding", "model/encoder/0", "model/encoder/1", "model/head"),
        "other/0",
    ]  # the model has a scalar of its own
    head, encoder = rows["model/head"], rows["model/encoder/0"]
    assert (head.status, head.layer, head.wrapper) == ("wrapped", "Linear", ToyLinear)
    assert (head.rank, head.alpha, head.distribution) == (2, 4.0, None)
    assert head.explanation == "wrapped by ToyLinear (output head)"
    assert (encoder.status, encoder.layer) == ("already adapted", "Linear")
    assert (encoder.rank, encoder.alpha) == (1, 5.0)
    assert encoder.explanation == "already adapted by ToyScale"
    for path in ("model", "model/embedding"):
        assert rows[path].status == rows[path].explanation == "no wrapper applies"
    other = rows["other/0"]
    assert other.status == other.explanation == "target does not match"
    assert other.wrapper is None and other.rank is None
    assert "2 of 6 candidate layers would be wrapped" in str(plan)
    plan = plan_lora(adapted, 2, mask="encoder/1", wrapper=ToyLinear)
    assert rows_of(plan)["head"].status == "mask does not select" and "<root>" in str(plan)


def test_a_target_that_selects_nothing_lists_the_nearest_paths_and_the_adaptable_layers(model):
    message = refused(model, target="encodr/0", wrapper=ToyLinear)
    assert message.startswith("the call (target 'encodr/0', wrapper ToyLinear) selects no layer.")
    nearest, adaptable = message.split("nearest paths are:\n")[1].split("can adapt these layers:")
    assert nearest.startswith("  - encoder/0: Linear")
    assert all(f"  - {path}\n" in adaptable for path in ("encoder/0", "encoder/1", "head"))
    assert "embedding" not in adaptable
    # Layers that can be adapted come first, and ends of paths are compared.
    names = {"head": eqx.nn.LayerNorm(2), "a": {"heads": model.head}}
    message = refused(names, target="haed", wrapper=ToyLinear)
    assert "are:\n  - a/heads: Linear, target does not match\n  - head: LayerNorm, no w" in message


def test_a_target_of_layers_that_the_wrapper_cannot_adapt_says_why(model):
    class Fussy(ToyLinear):
        @classmethod
        def why_not(cls, leaf):
            return "it looks up rows" if isinstance(leaf, eqx.nn.Embedding) else None

    for wrapper, why in [(ToyLinear, "no wrapper applies\n"), (Fussy, "it looks up rows\n")]:
        message = refused(model, target="embedding", wrapper=wrapper)
        assert "adapts none of them:\n  - embedding: Embedding, no wrapper applies" in message
        assert why in message and "docs/operators.md" in message and "nearest" not in message
        assert "can adapt these layers:\n  - encoder/0\n  - encoder/1\n  - head\n" in message
    message = refused([eqx.nn.LayerNorm(2)] * 20, target=".", wrapper=ToyLinear)
    assert message.count("LayerNorm") == 12 and "  - ... and 8 more\n" in message
    assert "can adapt none" in message


@pytest.mark.parametrize(
    ("specs", "row"),
    [
        ([("nothing|head", [UserEmbedding, ToyLinear]), ("emb", ToyLinear)], "no wrapper applies"),
        ([("emb|head", [UserEmbedding, ToyLinear]), ("emb", ToyLinear)], "adapted by specs[0]"),
        ([("blocks", ToyBlock), ("blocks/0/up", ToyLinear)], "0: Block, adapted by specs[0]"),
    ],
)
def test_a_spec_is_told_what_earlier_specs_and_its_own_wrappers_leave_it(model, blocks, specs, row):
    specs = [{"target": target, "wrapper": wrapper} for target, wrapper in specs]
    message = refused({"emb": model.embedding, "head": model.head, **blocks}, specs=specs)
    start = f"specs[1] (target {specs[1]['target']!r}, wrapper ToyLinear) selects no layer."
    assert message.startswith(start) and f"{row}\n" in message


class Annotated(eqx.Module):
    """A layer of a user, whose annotation says how many axes its array has."""

    table: Float[Array, "in out"]
    modes: Float[Array, "*modes out"]

    def __init__(self, key):
        self.table, self.modes = jax.random.normal(key, (4, 3)), jnp.ones((2, 2, 3))


class OneGain(ToyScale):
    """Claims any layer, and says nothing about stacks."""

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.Module) and not isinstance(leaf, eqx.nn.Sequential)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain = self.constant = jnp.ones(())


@pytest.mark.parametrize(
    ("make", "array"),
    [
        (lambda key: eqx.nn.Linear(4, 5, key=key), r"weight is float32\[3, 5, 4\]"),
        (lambda key: eqx.nn.Embedding(4, 5, key=key), "weight is"),
        (lambda key: eqx.nn.Conv2d(2, 2, 3, key=key), r"weight is float32\[3, 2, 2, 3, 3\]"),
        (lambda key: eqx.nn.ConvTranspose1d(2, 2, 3, key=key), "weight is"),
        (lambda key: eqx.nn.GRUCell(2, 3, key=key), "weight_ih is"),
        (lambda key: eqx.nn.LayerNorm((2, 3)), r"weight is float32\[3, 2, 3\]"),
        (Annotated, r"table is float32\[3, 4, 3\]"),
    ],
    ids=["linear", "embedding", "conv", "transposed", "gru", "norm", "annotated"],
)
def test_a_stack_is_refused_by_a_class_that_says_nothing_about_stacks(make, array):
    one, stack = (
        make(jax.random.key(0)),
        eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 3)),
    )
    model = {"one": one, "stack": stack}
    plan = plan_lora(model, 1, wrapper=OneGain)
    assert [row.status for row in plan] == ["wrapped", "refused"]
    message = f"'stack' is refused: its {array}.*, a stack .*OneGain does not define `stack_ndim`"
    with pytest.raises(SelectionError, match=message):
        Net(model).lora(rank=1, wrapper=OneGain)
    assert plan.problem is not None and "applies_to" in plan.problem
    for selection in ({"target": "one"}, {"mask": "one"}):
        assert [row.path for row in plan_lora(model, 1, wrapper=OneGain, **selection).wrapped] == [
            "one"
        ]
        assert plan_lora(model, 1, wrapper=OneGain, **selection).problem is None
    # A class that gives a number of axes is asked no further.
    Says = type("Says", (OneGain,), {"stack_ndim": classmethod(lambda cls, leaf: 0)})
    assert len(plan_lora(model, 1, wrapper=Says).wrapped) == 2


@pytest.mark.parametrize("nothing", [None, [jax.nn.relu]])
def test_a_model_without_layers_is_said_to_have_none(nothing):
    message = refused(nothing, wrapper=ToyLinear)
    assert "no Equinox module with plain arrays" in message and "flax-and-haiku.md" in message
    assert "jno-lora[haliax]" in message


def test_a_mask_that_selects_nothing_warns_and_names_the_layers(model, getkey):
    with pytest.warns(JnoLoraWarning, match=r"(?s)mask selects none .*encoder/0") as caught:
        result = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, mask="embedding")
    assert result is model and len(caught) == 1
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyLinear)
    with pytest.warns(JnoLoraWarning, match="carries an adapter already") as caught:
        apply_lora(adapted, 1, key=getkey(), wrapper=ToyLinear, mask="head")
    assert "head" in str(caught[0].message) and "encoder" not in str(caught[0].message)


def test_normalised_layers_are_left_out_with_a_warning_that_says_why(getkey):
    linear = eqx.nn.Linear(2, 2, key=getkey())
    spectral, _ = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(linear, "weight", key=getkey())
    own_norm = type("OwnNorm", (eqx.nn.WeightNorm,), {})(linear)
    model = {"spectral": spectral, "weight": own_norm, "head": linear}
    rows = rows_of(plan_lora(model, 1, wrapper=ToyLinear))
    assert rows["spectral/layer"].status == "inside SpectralNorm"
    assert rows["weight/layer"].status == "inside WeightNorm"
    with pytest.warns(JnoLoraWarning, match=r"(?s)rescale.*spectral/layer.*weight/layer") as caught:
        adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    assert set(adapters_in(adapted)) == {"head"} and len(caught) == 1
    for selection in ({"target": "head"}, {"mask": "head"}):  # nothing to warn of
        adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, **selection)
        assert set(adapters_in(adapted)) == {"head"}
    message = refused(model, wrapper=ToyLinear, target="weight/")
    assert "rescale or bypass the adapter" in message and "spectral/" not in message
    assert "adapts none of them:\n  - weight/layer: Linear, inside WeightNorm\n" in message
    assert "can adapt these" not in refused({"weight": model["weight"]}, wrapper=ToyLinear)


class OwnLayer(eqx.Module):
    """A layer that no adapter knows."""

    w: jax.Array
    bias: jax.Array


class ForOwnLayer(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, OwnLayer)


class Raises(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        raise RuntimeError("not for this layer")


class SaysHowToDeclare(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        return False

    @classmethod
    def why_not(cls, leaf):
        return "declare it by OwnModes" if isinstance(leaf, OwnLayer) else None


def own_model(getkey):
    layers = [OwnLayer(jnp.ones((40, 5)), jnp.ones(5)) for _ in range(2)]
    return {"own": layers, "head": eqx.nn.Linear(2, 2, key=getkey())}


def test_plan_and_summary_count_what_has_no_adapter(getkey, monkeypatch):
    model, registry = own_model(getkey), Registry(discover=False)
    line = "400 parameters (96 %) in 2 layers have no adapter: own/[0-1]"
    plan = plan_lora(model, 1, wrapper=ToyLinear, registry=registry)
    assert str(plan).endswith(line) and plan.left_out.sizes == {"own/0": 200, "own/1": 200}
    monkeypatch.setattr(Registry, "records", None)  # `net.lora` asks nobody for advice
    net = Net(model, registry=registry).freeze().lora(1, wrapper=ToyLinear)
    assert str(net.summary()).endswith(line)
    # What trains in full is not left out, and a net without adapters has chosen nothing.
    assert "no adapter" not in str(net.unfreeze().summary())
    assert "no adapter" not in str(Net(model).freeze().summary())


@pytest.mark.parametrize(
    ("classes", "advice"),
    [
        ([], "no installed adapter applies; declare w (docs/operators.md)"),
        ([SaysHowToDeclare], "no installed adapter applies; declare it by OwnModes"),
        ([Raises, SaysHowToDeclare, ForOwnLayer], "none of this call; ForOwnLayer ((in-process))"),
    ],
)
def test_a_row_gives_advice_on_a_layer_with_matrices(getkey, classes, advice):
    registry = Registry(discover=False)
    for cls in classes:
        registry.register(cls)
    rows = rows_of(plan_lora(own_model(getkey), 1, wrapper=ToyLinear, registry=registry))
    assert (rows["own/0"].status, rows["own/0"].explanation) == ("no wrapper applies", advice)
    assert rows["head"].advice is None


def test_advice_comes_from_all_plugins_unless_the_call_names_its_adapters(getkey, site):
    site.install_zoo()
    site.plugin("acme-lora", *(f'"E{n}", auto={n > 3}, layer=eqx.nn.Embedding' for n in range(6)))
    model = {"own": own_model(getkey), "table": eqx.nn.Embedding(3, 2, key=getkey())}

    def advice(path, **call):
        return rows_of(plan_lora(model, 1, **call))[path].advice

    assert advice("table", wrapper=ToyLinear) is None  # nothing is loaded
    asked = "none of this call; E4, E5, E0, E1 and 2 more (acme-lora)"
    assert advice("table", wrapper="lora") == asked
    assert advice("own/own/0").endswith("declare w (docs/operators.md)")


def test_integer_weights_are_told(model):
    class OfFloats(ToyLinear):
        @classmethod
        def applies_to(cls, leaf):
            return super().applies_to(leaf) and eqx.is_inexact_array(leaf.weight)

    codes = eqx.tree_at(lambda m: m.head.weight, model, jnp.zeros((2, 3), jnp.int8))
    reason = "its weight is int8[2, 3], and adapters need floating weights"
    assert rows_of(plan_lora(codes, 2, wrapper=OfFloats))["head"].reason == reason
    assert f"head: Linear, no wrapper applies: {reason}" in refused(
        codes, target="head", wrapper=OfFloats
    )


def test_a_plan_says_where_a_digit_continues_a_target():
    model = {"layers": [eqx.nn.Linear(2, 2, key=jax.random.key(0)) for _ in range(12)]}

    def notes(target):
        plan = plan_lora(model, 2, target=target, wrapper=ToyLinear)
        assert bool(plan.notes) == ("ends in a number" in str(plan))
        return "".join(plan.notes)

    note = notes("layers/1")
    assert "- layers/10\n  - layers/11\n" in note and "- layers/1\n" not in note
    assert repr("layers/1(/|$)") in note
    assert "layers/11" in notes("layers/[12]") and "layers/10" in notes("layers/1|layers/2")
    for target in ("layers/1(/|$)", "layers/2", "layers/[0-9]", "layers", ["1"]):
        assert not notes(target)
    assert [*wrapped(model, 2, target="layers/1(/|$)", wrapper=ToyLinear)] == ["layers/1"]
