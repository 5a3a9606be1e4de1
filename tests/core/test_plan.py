"""`plan_lora`: a row for every candidate, and errors for what selects nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import JnoLoraWarning, Net, Registry, SelectionError, apply_lora, plan_lora

from .toys import Block, ToyBlock, ToyConv, ToyLinear, ToyScale, UserEmbedding, adapters_in, same


def rows_of(plan):
    return {row.path: row for row in plan}


# --- every status


def test_wrapped_says_by_what_and_with_which_rank_and_alpha(model):
    row = rows_of(plan_lora(model, 2, 4.0, wrapper=ToyLinear))["head"]
    assert (row.status, row.layer, row.wrapper) == ("wrapped", "Linear", ToyLinear)
    assert (row.rank, row.alpha, row.distribution) == (2, 4.0, None)
    assert row.explanation == "wrapped by ToyLinear (output head)"


def test_target_does_not_match(model):
    row = rows_of(plan_lora(model, 2, target="encoder", wrapper=ToyLinear))["head"]
    assert row.status == row.explanation == "target does not match"
    assert row.wrapper is None and row.rank is None


def test_mask_does_not_select(model):
    plan = plan_lora(model, 2, mask="encoder", wrapper=ToyLinear)
    assert rows_of(plan)["head"].status == "mask does not select"
    assert [row.path for row in plan.wrapped] == ["encoder/0", "encoder/1"]


def test_no_wrapper_applies(model):
    rows = rows_of(plan_lora(model, 2, wrapper=ToyLinear))
    assert rows["embedding"].status == "no wrapper applies"
    assert rows["embedding"].layer == "Embedding"
    assert rows[""].status == "no wrapper applies"  # the model has a scalar of its own


def test_already_adapted_says_by_what(model, getkey):
    adapted = apply_lora(model, 1, 5.0, key=getkey(), target="head", wrapper=ToyScale)
    row = rows_of(plan_lora(adapted, 2, wrapper=ToyLinear))["head"]
    assert (row.status, row.layer, row.wrapper) == ("already adapted", "Linear", ToyScale)
    assert (row.rank, row.alpha) == (1, 5.0)
    assert row.explanation == "already adapted by ToyScale"


def normalised(getkey):
    make = eqx.nn.make_with_state(eqx.nn.SpectralNorm)
    spectral, _ = make(eqx.nn.Linear(2, 2, key=getkey()), "weight", key=getkey())
    weight = eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=getkey()))
    return {"spectral": spectral, "weight": weight, "head": eqx.nn.Linear(2, 2, key=getkey())}


def test_inside_normalised_containers(getkey):
    rows = rows_of(plan_lora(normalised(getkey), 1, wrapper=ToyLinear))
    assert rows["spectral/layer"].status == "inside SpectralNorm"
    assert rows["weight/layer"].status == "inside WeightNorm"
    assert rows["head"].status == "wrapped"


def test_every_candidate_has_one_row_and_what_holds_no_layer_has_none(model):
    plan = plan_lora({"model": model, "other": [1, "x", jax.nn.relu]}, 1, wrapper=ToyLinear)
    assert [row.path for row in plan] == [
        "model",
        "model/embedding",
        "model/encoder/0",
        "model/encoder/1",
        "model/head",
    ]


def test_a_plan_prints_as_a_table(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyScale)
    text = str(plan_lora(adapted, 2, 4.0, wrapper=ToyLinear))
    assert "2 of 5 candidate layers would be wrapped" in text
    for part in (
        "encoder/[0-1]   x 2",
        "wrapped by ToyLinear",
        "already adapted by ToyScale",
        "<root>",
    ):
        assert part in text


def test_one_candidate_is_one_layer(getkey):
    plan = plan_lora(eqx.nn.Linear(2, 2, key=getkey()), 1, wrapper=ToyLinear)
    assert repr(plan) == "Plan(1 of 1 candidate layer would be wrapped)"


def test_a_plan_is_a_sequence_of_rows_and_changes_nothing(model):
    plan = plan_lora(model, 1, wrapper=ToyLinear)
    assert len(plan) == len(list(plan)) == len(plan.rows)
    assert plan.having("wrapped", "no wrapper applies") == plan.rows


# --- what selects nothing


def test_a_target_that_selects_nothing_lists_the_nearest_paths_and_the_adaptable_layers(model):
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, target="encodr/0", wrapper=ToyLinear, key=jax.random.key(0))
    message = str(caught.value)
    assert message.startswith("the call (target 'encodr/0', wrapper ToyLinear) selects no layer.")
    nearest = message.split("The nearest paths are:\n")[1]
    assert nearest.startswith("  - encoder/0\n")
    adaptable = message.split("can adapt are:\n")[1]
    for path in ("encoder/0", "encoder/1", "head"):
        assert f"  - {path}\n" in adaptable
    assert "embedding" not in adaptable
    assert "plan_lora" in adaptable


def test_a_target_of_layers_that_the_wrapper_cannot_adapt_lists_those_it_can(model):
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, target="embedding", wrapper=ToyLinear, key=jax.random.key(0))
    message = str(caught.value)
    assert "nearest paths" not in message
    first, matched = message.split("It matches these layers, and adapts none of them:\n")
    assert first.count("\n") == 1  # this is said first
    assert matched.startswith("  - embedding: Embedding, no wrapper applies\n")
    assert '`wrapper="auto"` asks every installed adapter' in matched
    assert "can adapt are:\n  - encoder/0\n  - encoder/1\n  - head\n" in message


def test_a_target_that_matches_without_adapting_says_why(model):
    class Fussy(ToyLinear):
        @classmethod
        def why_not(cls, leaf):
            return "it looks up rows" if isinstance(leaf, eqx.nn.Embedding) else None

    with pytest.raises(SelectionError, match=r"  - embedding: Embedding, .*it looks up rows\n"):
        apply_lora(model, 1, target="embedding", wrapper=Fussy, key=jax.random.key(0))


def test_many_layers_that_no_wrapper_adapts_are_counted():
    norms = [eqx.nn.LayerNorm(2) for _ in range(20)]
    with pytest.raises(
        SelectionError, match=r"  - 0: LayerNorm, (?s:.*)  - \.\.\. and 8 more\n"
    ) as caught:
        apply_lora(norms, 1, target=".", wrapper=ToyLinear, key=jax.random.key(0))
    assert str(caught.value).count("LayerNorm") == 12  # and are not listed a second time


@pytest.mark.parametrize("other", ["nothing", "embedding"])
def test_a_spec_is_told_which_layers_its_own_wrappers_do_not_adapt(model, other):
    specs = [{"target": f"{other}|head", "wrapper": [UserEmbedding, ToyLinear]}]
    specs.append({"target": "embedding", "wrapper": ToyLinear})
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, specs=specs, key=jax.random.key(0))
    message = str(caught.value)
    assert message.startswith("specs[1] (target 'embedding', wrapper ToyLinear)")
    assert "adapts none of them:\n  - embedding: Embedding, no wrapper applies\n" in message
    assert "taken" not in message


def test_the_nearest_paths_are_those_of_adaptable_layers_before_others(getkey):
    model = {"head": eqx.nn.LayerNorm(2), "heads": eqx.nn.Linear(2, 2, key=getkey())}
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, target="haed", wrapper=ToyLinear, key=jax.random.key(0))
    nearest = str(caught.value).split("The nearest paths are:\n")[1]
    assert nearest.startswith("  - heads\n  - head: LayerNorm, no wrapper applies\n")


def test_a_wrapper_that_applies_nowhere_lists_the_layers_there_are(model):
    with pytest.raises(SelectionError, match="can adapt none") as caught:
        apply_lora(model, 1, wrapper=ToyConv, key=jax.random.key(0))
    assert "head: Linear" in str(caught.value) and "embedding: Embedding" in str(caught.value)


@pytest.mark.parametrize("nothing", [{}, None, 3, [jax.nn.relu]])
def test_a_model_without_layers_is_said_to_have_none(nothing):
    expected = r"holds no Equinox module with arrays. To adapt bare arrays, .*flax-and-haiku.md"
    with pytest.raises(SelectionError, match=expected):
        apply_lora(nothing, 1, wrapper=ToyLinear, key=jax.random.key(0))


def test_a_spec_that_earlier_ones_leave_nothing_is_told_who_took_it(model):
    specs = [{"target": "encoder"}, {"wrapper": UserEmbedding}, {"target": "encoder/1"}]
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, wrapper=ToyLinear, specs=specs, key=jax.random.key(0))
    message = str(caught.value)
    assert message.startswith("specs[2] (target 'encoder/1', wrapper ToyLinear) selects no layer.")
    assert "  - encoder/1: taken by specs[0], which wins\n" in message


def test_a_spec_may_find_adapted_layers_only(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyLinear)
    specs = [{"target": "head"}, {"target": "encoder"}]
    plan = plan_lora(adapted, 1, wrapper=ToyLinear, specs=specs)
    assert [row.path for row in plan.wrapped] == ["encoder/0", "encoder/1"]


def test_a_mask_that_selects_nothing_warns_and_names_the_layers(model, getkey):
    with pytest.warns(JnoLoraWarning) as caught:
        result = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, mask="embedding")
    assert result is model
    assert len(caught) == 1
    assert "The mask selects none of these layers" in str(caught[0].message)
    assert "encoder/0" in str(caught[0].message)


def test_a_mask_that_selects_only_adapted_layers_says_that_they_are_adapted(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyLinear)
    with pytest.warns(JnoLoraWarning, match="carries an adapter already") as caught:
        apply_lora(adapted, 1, key=getkey(), wrapper=ToyLinear, mask="head")
    assert "head" in str(caught[0].message) and "encoder" not in str(caught[0].message)


def test_a_net_whose_mask_selects_only_adapted_layers_refuses(model):
    net = Net(model).lora(1, wrapper=ToyLinear, target="head")
    with pytest.raises(SelectionError, match=r"(?s)already.*head \(already adapted by ToyLinear\)"):
        net.mask("head").lora(1, wrapper=ToyLinear)


# --- WeightNorm and SpectralNorm


def test_normalised_layers_are_left_out_with_a_warning_that_says_why(getkey):
    model = normalised(getkey)
    with pytest.warns(JnoLoraWarning) as caught:
        adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    assert set(adapters_in(adapted)) == {"head"}
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "spectral/layer" in message and "weight/layer" in message and "rewrite" in message


def test_a_target_that_finds_only_normalised_layers_is_an_error_with_the_reason(getkey):
    with pytest.raises(SelectionError) as caught:
        apply_lora(
            normalised(getkey), 1, wrapper=ToyLinear, target="weight/", key=jax.random.key(0)
        )
    message = str(caught.value)
    assert "would rescale or bypass the adapter" in message
    assert "adapts none of them:\n  - weight/layer: inside WeightNorm\n" in message
    assert "spectral/" not in message


def test_a_target_elsewhere_is_silent_about_normalised_layers(getkey):
    adapted = apply_lora(normalised(getkey), 1, key=getkey(), wrapper=ToyLinear, target="head")
    assert set(adapters_in(adapted)) == {"head"}


def test_a_mask_elsewhere_is_silent_about_normalised_layers(getkey):
    model = normalised(getkey)
    adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, mask="head")
    assert set(adapters_in(adapted)) == {"head"}


def test_a_wrapper_that_claims_the_normalised_container_itself_may_have_it(getkey):
    class AroundNorm(ToyBlock):
        @classmethod
        def applies_to(cls, leaf):
            return isinstance(leaf, eqx.nn.WeightNorm)

        def __init__(self, base, rank, alpha, *, key):
            self.base, self.rank, self.alpha = base, rank, alpha
            self.shift = jax.numpy.zeros(base.layer.out_features)

    model = normalised(getkey)
    adapted = apply_lora(model, 1, key=getkey(), wrapper=AroundNorm)
    assert set(adapters_in(adapted)) == {"weight"}
    assert same(adapted["weight"].base, model["weight"])


def test_layers_beside_a_container_of_containers_are_all_found(getkey):
    model = [{"a": (Block(2, key=getkey()), eqx.nn.Identity())}]
    plan = plan_lora(model, 1, wrapper=ToyLinear)
    assert [row.path for row in plan.wrapped] == ["0/a/0/up", "0/a/0/down"]


# --- layers with matrices that a call leaves out


class OwnLayer(eqx.Module):
    """A layer that no adapter knows."""

    w: jax.Array
    bias: jax.Array

    @classmethod
    def of_width(cls, width):
        return cls(jnp.ones((width, 5)), jnp.ones(5))


class ForOwnLayer(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, OwnLayer)


class Raises(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        raise RuntimeError("not for this layer")


def own_model(getkey):
    layers = [OwnLayer.of_width(40), OwnLayer.of_width(40)]
    return {"own": layers, "head": eqx.nn.Linear(2, 2, key=getkey())}


def test_plan_and_summary_count_what_has_no_adapter(getkey):
    model = own_model(getkey)
    line = "400 parameters (96 %) in 2 layers have no adapter: own/[0-1]"
    plan = plan_lora(model, 1, wrapper=ToyLinear, registry=Registry(discover=False))
    assert str(plan).endswith(line) and plan.left_out.sizes == {"own/0": 200, "own/1": 200}
    net = Net(model, registry=Registry(discover=False)).freeze().lora(1, wrapper=ToyLinear)
    assert str(net.summary()).endswith(line)
    # What trains in full is not left out, and a net without adapters has chosen nothing.
    assert "no adapter" not in str(net.unfreeze().summary())
    assert "no adapter" not in str(Net(model).freeze().summary())


def test_a_row_names_the_installed_adapters_that_apply(getkey):
    registry = Registry(discover=False)
    for cls in (ForOwnLayer, Raises):
        registry.register(cls)
    model = own_model(getkey)
    row = rows_of(plan_lora(model, 1, wrapper=ToyLinear, registry=registry))["own/0"]
    assert row.explanation == "none of this call; ForOwnLayer ((in-process))"
    assert row.status == "no wrapper applies"


def test_a_row_says_how_to_declare_what_no_installed_adapter_knows(getkey):
    registry = Registry(discover=False)
    row = rows_of(plan_lora(own_model(getkey), 1, wrapper=ToyLinear, registry=registry))["own/0"]
    assert row.explanation == "no installed adapter applies; declare w (docs/operators.md)"


def test_a_call_that_asks_loaded_plugins_alone_does_not_advise_to_declare(getkey, monkeypatch):
    monkeypatch.setattr(Registry, "loaded", lambda self: ())  # the zoo is not loaded
    model = {"own": own_model(getkey), "head": eqx.nn.Linear(2, 2, key=getkey())}
    rows = rows_of(plan_lora(model, 1, wrapper=ForOwnLayer))
    assert rows["head"].status == "no wrapper applies" and rows["head"].advice is None


class SaysHowToDeclare(ToyLinear):
    variant = "toy-spectral"

    @classmethod
    def applies_to(cls, leaf):
        return False

    @classmethod
    def why_not(cls, leaf):
        return "declare it by OwnModes" if isinstance(leaf, OwnLayer) else None


def test_the_advice_of_an_installed_adapter_goes_before_declare(getkey):
    registry = Registry(discover=False)
    registry.register(SaysHowToDeclare)
    row = rows_of(plan_lora(own_model(getkey), 1, wrapper=ToyLinear, registry=registry))["own/0"]
    assert row.explanation == "no installed adapter applies; declare it by OwnModes"


def test_a_call_by_variant_loads_all_plugins_and_gives_the_same_advice(getkey, site):
    site.install_zoo()
    row = rows_of(plan_lora(own_model(getkey), 1, wrapper="lora"))["own/0"]
    assert row.explanation == "no installed adapter applies; declare w (docs/operators.md)"


def test_adapting_asks_no_other_adapters(getkey, monkeypatch):
    def records(*_, **__):
        raise AssertionError("`net.lora` loads plugins to give advice")

    monkeypatch.setattr(Registry, "records", records)
    net = Net(own_model(getkey)).freeze().lora(1, wrapper=ToyLinear)
    assert "400 parameters" in str(net.summary())


def test_the_error_names_the_layers_passed_over_and_where_to_read_on(getkey):
    with pytest.raises(SelectionError) as caught:
        Net(own_model(getkey)).lora(specs=[{"wrapper": ToyConv}, {"wrapper": ToyLinear}])
    message = str(caught.value)
    assert "  - own/0: OwnLayer, no wrapper applies\n" in message
    assert "docs/operators.md" in message


def test_an_error_gives_the_reason_of_the_adapter(getkey):
    class Declared(ForOwnLayer):
        @classmethod
        def applies_to(cls, leaf):
            return False

        @classmethod
        def why_not(cls, leaf):
            return "its axes are declared twice" if isinstance(leaf, OwnLayer) else None

    with pytest.raises(SelectionError, match=r"own/0: OwnLayer, .*its axes are declared twice\n"):
        Net(own_model(getkey)).lora(1, wrapper=Declared)


def test_a_plan_says_where_a_digit_continues_a_target():
    model = {"layers": [eqx.nn.Linear(2, 2, key=jax.random.key(0)) for _ in range(12)]}

    def notes(target):
        plan = plan_lora(model, 2, target=target, wrapper=ToyLinear)
        assert bool(plan.notes) == ("ends in a number" in str(plan))
        return plan.notes

    (note,) = notes("layers/1")
    assert "- layers/10\n  - layers/11\n" in note and "- layers/1\n" not in note
    assert repr("layers/1(/|$)") in note
    assert "layers/11" in notes("layers/[12]")[0] and notes("layers/(1|2)")
    assert "layers/10" in notes("layers/1|layers/2")[0]
    for target in ("layers/1(/|$)", "layers/2", "layers/[0-9]", r"layers/\d", "layers", ["1"]):
        assert notes(target) == ()
    selected = plan_lora(model, 2, target="layers/1(/|$)", wrapper=ToyLinear).wrapped
    assert [row.path for row in selected] == ["layers/1"]
