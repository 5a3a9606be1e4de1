"""Training what `load_peft` read: `net.train_adapters`, and the file's dropout."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from peft_cases.files import PREFIX, lora_tensors, normal, stack_of, trained

from jno.lora import JnoLoraWarning, Net, SelectionError, apply_lora, extract_adapters
from jno.lora.extending import adapted_layers
from jno_lora_convert import convert_lora
from jno_lora_peft import load_peft, save_peft
from jno_lora_quantized import quantize
from jno_lora_train import Trainer

KEY = jax.random.key(0)
MODEL = {
    "embed": eqx.nn.Embedding(7, 4, key=KEY),
    "fc": eqx.nn.Linear(4, 3, key=KEY),
    "norm": eqx.nn.LayerNorm(3),
    "head": eqx.nn.Linear(3, 2, key=KEY),
}
FC = {"fc": MODEL["fc"]}
TENSORS = lora_tensors("fc", 3, 4)
HEAD = {f"{PREFIX}head.weight": normal(2, 3), f"{PREFIX}head.bias": normal(2)}
EMBED = {
    f"{PREFIX}embed.lora_embedding_A": normal(2, 7),
    f"{PREFIX}embed.lora_embedding_B": normal(4, 2),
}
DROPOUT = {"lora_dropout": 0.25}


def selected(net):
    trainable, _ = net.partition()
    return {jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(trainable)}


def dropouts(model):
    return {path: getattr(x, "dropout", None) for path, x in adapted_layers(model)}


# --- which arrays train


@pytest.mark.parametrize("form", ["lora", "dora", "quantized", "sum", "named"])
def test_one_call_trains_the_adapters_of_a_file_alone(form, load):
    model = MODEL if form != "quantized" else quantize(MODEL, "int8")
    settings, tensors = {"target_modules": ["fc"], "modules_to_save": ["head"]}, TENSORS | HEAD
    if form == "dora":
        settings["use_dora"] = True
        tensors = tensors | {f"{PREFIX}fc.lora_magnitude_vector.weight": normal(3)}
    if form == "quantized":
        tensors, settings = TENSORS, {"target_modules": ["fc"]}
    net = Net(load(model, tensors, **settings))
    adapters = {"['fc'].lora_A", "['fc'].lora_B"}
    if form == "dora":
        adapters.add("['fc'].magnitude")
    if form in ("sum", "named"):
        net.add_adapter("file").deactivate().lora(2, target="fc").add_adapter("mine")
        if form == "sum":
            net.activate("file", "mine", train=["file"])
            adapters = {f"['fc'].trained['file'].lora_{x}" for x in "AB"}
        else:
            net.activate("file")
    net.freeze()
    assert selected(net.train_adapters()) == adapters
    net.mask("^head").unfreeze()  # as PEFT with `is_trainable=True`
    assert form == "quantized" or selected(net) == adapters | {"['head'].weight", "['head'].bias"}
    assert selected(net.train_adapters()) == adapters


def loss(model, batch):
    return jnp.mean((jax.vmap(model["fc"])(batch) - 1) ** 2)


def test_a_loaded_model_that_is_frozen_is_not_trained_in_vain(load):
    net = Net(load(MODEL, TENSORS, target_modules=["fc"])).freeze()
    with pytest.warns(JnoLoraWarning, match="No array of the adapters trains"):
        parts = net.partition()
    trainer, batches = Trainer(loss, optax.sgd(0.1)), [jnp.asarray(normal(8, 4))] * 3
    for train in (
        lambda: trainer.fit(*parts, batches),
        lambda: trainer.start(parts[0]),
        lambda: trainer.compile(*parts, batches[0]),
    ):
        with pytest.raises(SelectionError, match=r"Nothing trains.*train_adapters\(\)"):
            train()
    losses = trainer.fit(*net.train_adapters().partition(), batches).losses
    assert losses[2] < losses[0]


def test_a_sum_without_trained_sets_has_nothing_to_train(load):
    net = (
        Net(load(MODEL, TENSORS, target_modules=["fc"]))
        .add_adapter("file")
        .activate("file", weights={"file": 0.5})
    )
    net.freeze().partition()  # no warning: nobody asked to train it
    with pytest.raises(SelectionError, match="no adapters that can train"):
        net.train_adapters()


# --- dropout


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_dropout_is_read_switched_off_trained_with_and_written_again(variant, load, save):
    settings = DROPOUT | {"use_rslora": variant == "rslora"}
    model = load(FC, TENSORS, **settings)
    without = load(FC, TENSORS, use_rslora=variant == "rslora")
    x = jnp.asarray(normal(4))
    assert jnp.array_equal(eqx.filter_jit(model["fc"])(x), without["fc"](x))
    training = eqx.nn.inference_mode(model, value=False)
    dropped = eqx.nn.Dropout(0.25)(x, key=jax.random.key(3))
    expected = MODEL["fc"](x) + without["fc"](dropped) - MODEL["fc"](dropped)
    assert jnp.allclose(training["fc"](x, key=jax.random.key(3)), expected, atol=1e-5)
    net = Net(training).train_adapters()
    net.update(jax.tree.map(lambda a: a + 0.5, net.partition()[0]))
    assert save(net)[0]["lora_dropout"] == 0.25
    net.add_adapter("file").deactivate().activate("file")
    assert save(net)[0]["lora_dropout"] == 0.25


def test_embeddings_have_no_dropout_in_peft(load, save):
    model = load(MODEL, TENSORS | EMBED, tied=False, target_modules=["fc", "embed"], **DROPOUT)
    assert {path: x and x.p for path, x in dropouts(model).items()} == {"embed": None, "fc": 0.25}
    assert eqx.nn.inference_mode(model, value=False)["embed"](jnp.asarray(1)).shape == (4,)
    assert save(model, tied=False)[0]["lora_dropout"] == 0.25


def test_stacks_and_quantised_layers_keep_it(load, save):
    stack = {"blocks": stack_of(2)}
    tensors = lora_tensors("0.blocks", 3, 4) | lora_tensors("1.blocks", 3, 4)
    model = load(stack, tensors, rename={r"^(\d)/blocks": r"blocks[\1]"}, **DROPOUT)
    assert dropouts(model)["blocks"].p == 0.25
    y = eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(eqx.if_array(0), None))(
        model["blocks"], jnp.ones(4)
    )
    assert y.shape == (2, 3)
    names = {r"^blocks\[(\d)\]": r"\1/blocks"}
    assert save(model, rename=names)[0]["lora_dropout"] == 0.25
    coded = load(quantize(FC, "int8"), TENSORS, **DROPOUT)
    assert save(coded)[0]["lora_dropout"] == 0.25


@pytest.mark.parametrize(
    ("tensors", "settings", "told"),
    [
        (
            TENSORS | {f"{PREFIX}fc.lora_magnitude_vector.weight": normal(3)},
            DROPOUT | {"use_dora": True},
            "lora_dropout=0.25.*DoRALinear has no dropout",
        ),
        (
            {f"{PREFIX}fc.hira_A": normal(2, 4), f"{PREFIX}fc.hira_B": normal(3, 2)},
            {"peft_type": "HIRA", "hira_dropout": 0.5},
            "hira_dropout=0.5.*HiRALinear has no dropout",
        ),
    ],
)
def test_dropout_that_an_adapter_lacks_is_told(tensors, settings, told, load):
    with pytest.warns(JnoLoraWarning, match=told):
        load(FC, tensors, **settings)
    load(FC, tensors, **{name: 0.0 if "drop" in name else x for name, x in settings.items()})


def test_layers_of_several_dropouts_get_the_largest_with_a_warning(save):
    net = Net(MODEL).freeze().lora(2, target="fc", options={"dropout": 0.1}).lora(2, target="head")
    with pytest.warns(JnoLoraWarning, match=r"one `lora_dropout`.* have 0, 0\.1, and 0\.1 was"):
        assert save(net)[0]["lora_dropout"] == 0.1


def test_arrays_of_experts_have_no_dropout_in_peft(save):
    stack = {"experts": {"up": stack_of(2)}}
    model = apply_lora(stack, 2, key=KEY, options={"dropout": 0.1})
    with pytest.warns(JnoLoraWarning, match=r"arrays of experts.* have 0\.1, and 0 was written"):
        assert save(model, target_parameters="up$")[0]["lora_dropout"] == 0.0


def test_a_sum_has_none(save):
    sets = {name: extract_adapters(trained(FC)) for name in "ab"}
    net = Net(FC).add_adapter("a", sets["a"]).add_adapter("b", sets["b"]).activate("a", "b")
    assert save(net)[0]["lora_dropout"] == 0.0


def test_a_conversion_from_peft_to_peft_keeps_it(tmp_path):
    model = apply_lora(FC, 2, key=KEY, options={"dropout": 0.1})
    save_peft(model, tmp_path / "old")
    convert_lora(tmp_path / "old", tmp_path / "new", to="peft")
    assert load_peft(FC, tmp_path / "new")["fc"].dropout.p == 0.1
    np.testing.assert_array_equal(load_peft(FC, tmp_path / "new")["fc"].lora_A, model["fc"].lora_A)


@pytest.mark.parametrize("dropout", ["0.1", 1.0, -0.5])
def test_only_a_probability_is_read(dropout, refuse):
    refuse("lora_dropout is .* not a probability", FC, TENSORS, lora_dropout=dropout)
