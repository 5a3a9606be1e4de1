"""Names, variants and ties: what `wrapper=` resolves to in the registry of this process."""

import equinox as eqx
import jax
import pytest

from jno.lora import (
    JnoLoraWarning,
    Net,
    Registry,
    SelectionError,
    apply_lora,
    hookimpl,
    plan_lora,
    register,
)

from .asking import wrapped
from .toys import (
    MODEL_LINEARS,
    Block,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    UserEmbedding,
    adapters_in,
)


class FamilyOne(ToyLinear):
    variant = "twins"


class FamilyTwo(ToyLinear):
    variant = "twins"


class Chooser:
    """A plugin object that chooses, and remembers what it was asked."""

    def __init__(self, choice):
        self.choice = choice
        self.asked = []

    @hookimpl
    def jno_lora_select(self, path, leaf, candidates):
        self.asked.append((path, type(leaf).__name__, tuple(candidates)))
        return self.choice


def test_a_registered_class_is_found_by_its_name_and_its_origin_is_shown(model, registry):
    register(ToyScale)
    plan = plan_lora(model, 1, wrapper="ToyScale")
    assert {row.wrapper for row in plan.wrapped} == {ToyScale}
    assert {row.distribution for row in plan.wrapped} == {"(in-process)"}
    assert "(in-process)" in str(plan)


def test_a_variant_selects_every_wrapper_of_the_family_for_its_layers(model, registry):
    class Other(UserEmbedding):
        variant = "twins"

    register(FamilyOne)
    register(Other)
    found = wrapped(model, 1, wrapper="twins")
    assert found == {"embedding": Other, **dict.fromkeys(MODEL_LINEARS, FamilyOne)}


@pytest.mark.parametrize("spelling", ["twins", "Twins", "t-wins", "TW_INS"])
def test_a_variant_is_compared_without_case_and_dashes(model, registry, spelling):
    register(FamilyOne)
    assert set(wrapped(model, 1, wrapper=spelling).values()) == {FamilyOne}


def test_names_and_classes_mix_in_a_list_in_order_of_priority(model, registry):
    register(ToyScale)
    register(FamilyOne)
    assert set(wrapped(model, 1, wrapper=["ToyScale", FamilyOne]).values()) == {ToyScale}
    assert set(wrapped(model, 1, wrapper=["twins", ToyScale]).values()) == {FamilyOne}


def test_a_tie_is_an_error_naming_the_layer_and_both_with_their_origins(model, registry):
    register(FamilyOne)
    register(FamilyTwo)
    with pytest.raises(SelectionError) as caught:
        wrapped(model, 1, wrapper="twins")
    message = str(caught.value)
    assert "claim 'encoder/0', a Linear" in message
    assert 'FamilyOne (from (in-process)), wrapper="(in-process):FamilyOne"' in message
    assert 'FamilyTwo (from (in-process)), wrapper="(in-process):FamilyTwo"' in message
    assert "`wrapper=`" in message and "`jno_lora_select`" in message


def test_a_select_hook_breaks_the_tie(model, registry, getkey):
    chooser = Chooser(FamilyTwo)
    for item in (FamilyOne, FamilyTwo, chooser):
        register(item)
    adapted = apply_lora(model, 1, key=getkey(), wrapper="twins", target="head")
    assert type(adapted.head) is FamilyTwo
    assert ("head", "Linear", (FamilyOne, FamilyTwo)) in chooser.asked


def test_a_select_hook_is_not_asked_where_one_wrapper_claims(model, registry):
    chooser = Chooser(FamilyTwo)
    for item in (FamilyOne, chooser):
        register(item)
    wrapped(model, 1, wrapper=["twins", FamilyTwo])
    assert chooser.asked == []


def test_a_hook_that_passes_leaves_the_choice_to_the_next_and_in_the_end_to_the_user(
    model, registry
):
    for item in (FamilyOne, FamilyTwo, Chooser(None)):
        register(item)
    with pytest.raises(SelectionError, match="Several adapters of equal priority"):
        wrapped(model, 1, wrapper="twins")
    register(Chooser(FamilyOne))
    assert set(wrapped(model, 1, wrapper="twins").values()) == {FamilyOne}


def test_a_hook_that_chooses_no_candidate_is_passed_over_with_one_warning(model, registry):
    for item in (FamilyOne, FamilyTwo, Chooser(FamilyTwo), Chooser(ToyConv)):
        register(item)
    with pytest.warns(JnoLoraWarning) as caught:
        assert set(wrapped(model, 1, wrapper="twins").values()) == {FamilyTwo}
    (message,) = (str(warning.message) for warning in caught)
    assert "ToyConv" in message and "'encoder/0'" in message
    assert "(FamilyOne, FamilyTwo)" in message and "none of the candidates" in message


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_hook_that_raises_is_passed_over_and_leaves_the_choice_to_the_user(
    model, registry, error
):
    class Raising:
        @hookimpl
        def jno_lora_select(self, path, leaf, candidates):
            raise error("no idea")

    for item in (FamilyOne, FamilyTwo, Raising()):
        register(item)
    with (
        pytest.warns(JnoLoraWarning, match=rf"{error.__name__}: no idea[^$]*'encoder/0'"),
        pytest.raises(SelectionError, match="Several adapters of equal priority"),
    ):
        wrapped(model, 1, wrapper="twins")


def test_a_hook_that_is_interrupted_stays_interrupted(model, registry):
    class Interrupted:
        @hookimpl
        def jno_lora_select(self, path, leaf, candidates):
            raise KeyboardInterrupt

    for item in (FamilyOne, FamilyTwo, Interrupted()):
        register(item)
    with pytest.raises(KeyboardInterrupt):
        wrapped(model, 1, wrapper="twins")


def test_an_unknown_name_lists_the_nearest(model, registry):
    register(ToyScale)
    with pytest.raises(SelectionError) as caught:
        plan_lora(model, 1, wrapper="ToyScail")
    message = str(caught.value)
    assert "No adapter or variant is called 'ToyScail'" in message
    assert "'ToyScale'" in message and "registered()" in message


def test_a_registry_of_ones_own_takes_the_place_of_the_installed_plugins(model, registry, getkey):
    own = Registry(discover=False)
    own.register(ToyScale)
    plan = plan_lora(model, 1, wrapper="ToyScale", registry=own)
    assert {row.distribution for row in plan.wrapped} == {"(in-process)"}
    adapted = apply_lora(model, 1, key=getkey(), wrapper="ToyScale", registry=own)
    net = Net(model, registry=own).lora(1, wrapper="ToyScale")
    assert adapters_in(adapted).keys() == adapters_in(net.module).keys() == set(MODEL_LINEARS)
    assert {row.distribution for row in net.summary()} == {"(in-process)"}
    with pytest.raises(SelectionError, match="No adapter or variant is called 'ToyScale'"):
        Net(model).lora(1, wrapper="ToyScale")


def test_explicit_classes_ask_no_registry(model, registry):
    assert set(wrapped(model, 1, wrapper=ToyLinear).values()) == {ToyLinear}
    assert registry.records() == ()


@pytest.mark.parametrize("choice", [None, ToyBlock, FamilyOne])
def test_an_adapter_of_a_container_does_not_silently_hide_one_of_equal_priority(
    getkey, registry, choice
):
    class OfBlocks(ToyBlock):
        variant = "twins"

    chooser = Chooser(OfBlocks if choice is ToyBlock else choice)
    for item in (FamilyOne, OfBlocks, chooser):
        register(item)
    model = {"block": Block(2, key=getkey())}
    if choice is None:
        message = r"(?s)claim 'block', a Block:.*OfBlocks.*FamilyOne.*for 'block/up' inside of it"
        with pytest.raises(SelectionError, match=message):
            wrapped(model, 1, wrapper="twins")
        return
    found = wrapped(model, 1, wrapper="twins")
    inside = {"block/up": FamilyOne, "block/down": FamilyOne}
    assert found == ({"block": OfBlocks} if choice is ToyBlock else inside)
    assert chooser.asked[0] == ("block", "Block", (OfBlocks, FamilyOne))


def test_a_tie_inside_of_what_a_mask_leaves_out_is_none(getkey, registry):
    class Scaled(Block):
        scale: jax.Array

        def __init__(self, size, *, key):
            super().__init__(size, key=key)
            self.scale = jax.numpy.ones(())

    class OfBlocks(ToyBlock):
        variant = "twins"

        @classmethod
        def applies_to(cls, leaf):
            return isinstance(leaf, Scaled)

    for item in (FamilyOne, FamilyTwo, OfBlocks):
        register(item)
    model = {"block": Scaled(2, key=getkey())}
    mask = jax.tree.map(lambda _: False, model)
    mask = eqx.tree_at(lambda m: m["block"].scale, mask, True)
    assert wrapped(model, 1, wrapper="twins", mask=mask) == {"block": OfBlocks}
    message = r"(?s)claim 'block', a Scaled:.*OfBlocks.*FamilyOne.*FamilyTwo"
    with pytest.raises(SelectionError, match=message):
        wrapped(model, 1, wrapper="twins")
