"""LoRA of Qwix, Tunix, MaxText, diffusers and kohya, from arrays that are made here."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from peft_cases.files import normal

from jno.lora import (
    JnoLoraWarning,
    LoRAWrapper,
    MissingLibraryError,
    Net,
    PeftFormatError,
    SelectionError,
    apply_lora,
    merge_lora,
)
from jno_lora_convert import load_lora_state, lora_state

KEY = jax.random.key(0)
LINEAR = eqx.nn.Linear(4, 6, key=KEY)
BLOCK = {"q": LINEAR, "up": LINEAR}
# The factors of a layer, as Torch has them.
DOWN, UP = normal(2, 4), normal(6, 2)


KOHYA, DIFFUSERS = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


def pair(module, names, factors=(DOWN, UP)):
    """The factors of a module by their names in the file."""
    return {f"{module}.{name}": array for name, array in zip(names, factors, strict=True)}


def update(layer):
    """The update of a layer as one matrix for each layer of a stack, in NumPy."""
    A, B = np.asarray(layer.lora_A, np.float64), np.asarray(layer.lora_B, np.float64)
    return type(layer).low_rank_scale(layer.rank, layer.alpha) * B @ A


def stack(model):
    return jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *model)


def qwix_block(number=0):
    return {
        # An einsum with heads, as a variable of Flax or Orbax has its array.
        "q": {
            "w_lora_a": {"value": normal(4, 2) + number},
            "w_lora_b": {"value": normal(2, 2, 3)},
        },
        "up": {"kernel_lora_a": normal(4, 2), "kernel_lora_b": normal(2, 6) + number},
    }


def expected(block):
    a, b = (array["value"] for array in block["q"].values())
    return {"q": (a @ b.reshape(2, 6)).T, "up": np.matmul(*block["up"].values()).T}


def assert_updates(layers, blocks, scale):
    for layer, block in zip(layers, blocks, strict=True):
        for name, matrix in expected(block).items():
            assert np.allclose(update(layer[name]), scale * matrix, atol=1e-5)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and np.allclose(a, b, atol=1e-6)


def refused(reason, model, state, **options):
    with pytest.raises(PeftFormatError, match=reason) as error:
        load_lora_state(model, state, **{"alpha": 1.0, **options})
    return str(error.value)


def unwritten(reason, model, like, error=PeftFormatError, **options):
    with pytest.raises(error, match=reason) as raised:
        lora_state(model, like, **{"alpha": 2.0, **options})
    return str(raised.value)


def test_qwix_state_is_read_and_written_back():
    model = {
        "layers": [BLOCK] * 2,
        "conv": eqx.nn.Conv(2, 3, 5, (3, 2), key=KEY),
        "one": eqx.nn.Conv2d(3, 5, 1, key=KEY),
        "embed": eqx.nn.Embedding(7, 4, key=KEY),
    }
    a, b, ids, rows = normal(3, 2, 3, 2), normal(2, 5), normal(7, 2), normal(2, 4)
    state = {
        "layers": {number: qwix_block(number) for number in range(2)},
        "conv": {"kernel_lora_a": a, "kernel_lora_b": b},
        "one": {"kernel_lora_a": normal(3, 2), "kernel_lora_b": b},
        "embed": {"embedding_lora_a": ids, "embedding_lora_b": rows},
    }
    loaded = load_lora_state(model, state, alpha=3.0)
    assert_updates(loaded["layers"], state["layers"].values(), 1.5)
    # A kernel of Flax is (height, width, in, out).
    kernel = np.einsum("hwir,ro->oihw", a, b).reshape(5, -1)
    assert np.allclose(update(loaded["conv"]), 1.5 * kernel, atol=1e-5)
    assert np.allclose(update(loaded["one"]), 1.5 * (normal(3, 2) @ b).T, atol=1e-5)
    change = merge_lora(loaded["embed"]).weight - model["embed"].weight
    assert np.allclose(change, 1.5 * ids @ rows, atol=1e-5)
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
    assert_close(lora_state(Net(loaded), like, alpha=3.0), state)
    torch = {"embed.lora_embedding_A": ids.T, "embed.lora_embedding_B": rows.T}
    again = load_lora_state(model, torch, alpha=3.0)["embed"]
    assert np.allclose(merge_lora(again).weight - model["embed"].weight, change, atol=1e-5)


def test_a_state_of_another_alpha_rank_and_dtype_has_the_same_update():
    loaded = load_lora_state(BLOCK, qwix_block(1), alpha=3.0)
    like = {
        "q": {"w_lora_a": normal(4, 3), "w_lora_b": normal(3, 6)},
        "up": {"kernel_lora_a": normal(4, 4), "kernel_lora_b": jnp.zeros((4, 6), jnp.bfloat16)},
    }
    written = lora_state(loaded, like, alpha=7.0)
    assert written["up"]["kernel_lora_b"].dtype == jnp.bfloat16
    wanted = expected(qwix_block(1))
    q, up = (np.matmul(*map(np.float32, layer.values())).T for layer in written.values())
    assert np.allclose(7 / 3 * q, 1.5 * wanted["q"], atol=1e-5)
    assert np.allclose(7 / 4 * up, 1.5 * wanted["up"], rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("axis", "here"), [(0, "a stack"), (1, "a stack"), (1, "a list")])
def test_a_stack_of_maxtext_is_read_and_written(axis, here):
    # Three layers, so that only one axis can be meant.
    blocks = [qwix_block(number) for number in range(3)]
    state = {"decoder": {"layers": jax.tree.map(lambda *arrays: np.stack(arrays, axis), *blocks)}}
    model, rename = [BLOCK] * 3, {r"^decoder/layers/(.*)\[(\d+)\]$": r"\2/\1"}
    if here == "a stack":
        model, rename = stack(model), {"^decoder/layers/": ""}
    loaded = load_lora_state(model, state, alpha=2.0, rename=rename)
    if here == "a list":
        assert_updates(loaded, blocks, 1)
    else:
        for name in ("q", "up"):
            matrices = [expected(block)[name] for block in blocks]
            assert np.allclose(update(loaded[name]), matrices, atol=1e-5)
        reason = r"q\[1\]: the state has no arrays for it"
        unwritten(reason, loaded, blocks[0], rename={"$": "[0]"})
    assert_close(lora_state(loaded, state, alpha=2.0, rename=rename), state)


def test_maxtexts_names_in_linen():
    a, b = normal(4, 3, 2), normal(2, 3, 2, 3)  # inputs, layers, rank; rank, layers, heads, size
    state = {"params": {"value": {"lora_a.kernel": a, "lora_b.kernel": b, "kernel": None}}}
    rename = {r"params/value\[(\d)\]": r"\1"}
    loaded = load_lora_state([LINEAR] * 3, state, alpha=2.0, rename=rename)
    for number, layer in enumerate(loaded):
        wanted = (a[:, number] @ b[:, number].reshape(2, 6)).T
        assert np.allclose(update(layer), wanted, atol=1e-5)


def test_an_open_axis_must_be_said():
    model = stack([eqx.nn.Linear(2, 3, key=KEY)] * 2)
    state = {"kernel_lora_a": normal(2, 2, 2), "kernel_lora_b": normal(2, 2, 3)}
    refused("say stack_axis=0 or stack_axis=1", model, state)
    refused("must fit 2 layers", model, {**state, "kernel_lora_b": normal(2, 5, 3)}, stack_axis=1)
    a, b = state.values()
    for axis, subscripts in enumerate(("lir,lro->loi", "ilr,rlo->loi")):
        loaded = load_lora_state(model, state, alpha=2.0, stack_axis=axis)
        assert np.allclose(update(loaded), np.einsum(subscripts, a, b), atol=1e-5)


def test_everything_that_does_not_fit_is_listed():
    model = {"layers": [BLOCK], "conv": eqx.nn.Conv1d(4, 6, 3, groups=2, key=KEY)}
    q, up = qwix_block().values()
    state = {
        "layers": [{"q": {"w_lora_a": q["w_lora_a"]}, "up": {**up, "kernel": normal(4, 6)}}],
        "other": {"kernel_lora_a": normal(4, 2), "kernel_lora_b": normal(2, 6)},
        "conv": {"kernel_lora_a": normal(3, 2, 2), "kernel_lora_b": normal(2, 6)},
    }
    message = refused("The state does not fit the model", model, state)
    for line in (
        "layers/0/up/kernel: no array of LoRA has such a name",
        "layers/0/q: its factor B is missing",
        "other: the model has no such layer",
        "conv: the layer has 2 groups",
        "Nothing was loaded.",
    ):
        assert line in message
    wide = {"q": {"w_lora_a": normal(5, 2), "w_lora_b": normal(2, 6)}}
    refused(r"q: expected factors \(4, rank\) and \(rank, 6\)", BLOCK, wide)
    two = {**up, **q}
    refused("q/w: it stands for the same layer as 'q/kernel'", BLOCK, {"q": two})
    refused("moe/w: the model has no such layer", BLOCK, {"moe": two})
    refused("one layer there, not a stack", BLOCK, {"q": q}, rename={"q": "q[3]"})
    refused("3: not in the model", stack([BLOCK] * 2), {"q": q}, rename={"q": "q[3]"})
    shared = eqx.nn.Shared(BLOCK, lambda m: m["up"].weight, lambda m: m["q"].weight)
    refused("other layers read its weight", shared, {"q": q}, rename={"^": "pytree/"})
    refused("No module of the file is in the model", model, {"nothing": qwix_block()})
    refused("holds no arrays of LoRA", model, {})
    loaded = load_lora_state(model, {"layers": [qwix_block()]}, alpha=1.0)
    refused("carries a LoRALinear already", loaded, {"layers": [qwix_block()]})


def test_adapters_that_the_state_cannot_hold_are_listed():
    loaded = load_lora_state(BLOCK, qwix_block(), alpha=2.0)
    like = {"up": {"kernel_lora_a": normal(4, 1), "kernel_lora_b": normal(1, 6)}}
    message = unwritten("The adapters do not fit the state", loaded, like)
    assert "up: its update has rank 2, and the state has room for rank 1" in message
    assert "q: the state has no arrays for it" in message
    unwritten("'q' has no adapter to write", {**loaded, "q": LINEAR}, qwix_block())
    for options in ({"wrapper": "ia3"}, {"options": {"bias": "train"}}):
        adapter = apply_lora(LINEAR, 1, key=KEY, **options)
        unwritten("not a product of two factors", adapter, qwix_block()["q"])
    unwritten("alpha must not be 0", loaded, like, error=SelectionError, alpha=0.0)
    unwritten("are read, not written", loaded, pair("up", KOHYA))


UNET = {
    "down_blocks": [{"attn": {"to_q": LINEAR}}],
    "to_out": [eqx.nn.Linear(6, 4, key=KEY), eqx.nn.Dropout()],
    "conv_in": eqx.nn.Conv2d(3, 5, 3, padding=1, key=KEY),
    "proj": eqx.nn.Conv2d(3, 5, 1, key=KEY),
}


def to_q(model):
    return model["down_blocks"][0]["attn"]["to_q"]


def test_diffusers_names_old_and_new():
    out = normal(3, 6), normal(4, 3)
    former = ("down.weight", "up.weight")
    new = {
        **pair("unet.down_blocks.0.attn.to_q", DIFFUSERS),
        **pair("unet.to_out.0", ("lora_A.default.weight", "lora_B.default.weight"), out),
        **pair("text_encoder.q_proj.lora_linear_layer", former),
    }
    old = {
        **pair("unet.down_blocks.0.attn.processor.to_q_lora", former),
        **pair("unet.to_out.lora", former, out),
        "unet.to_out.alpha": np.float32(3.0),
    }
    for state in (new, old):
        loaded = load_lora_state(UNET, state, prefix="unet.")
        # Without an alpha, the scale is 1.
        assert np.allclose(update(to_q(loaded)), UP @ DOWN, atol=1e-5)
        assert np.allclose(update(loaded["to_out"][0]), out[1] @ out[0], atol=1e-5)
    encoder = load_lora_state({"q_proj": LINEAR}, new, prefix="text_encoder.", alpha=4.0)
    assert np.allclose(update(encoder["q_proj"]), 2 * UP @ DOWN, atol=1e-5)
    refused("none with this prefix", UNET, new, prefix="transformer.")
    # A processor of the model comes before the processor of a name.
    named = pair("v.processor.to_q", DIFFUSERS)
    loaded = load_lora_state({"v": {"to_q": LINEAR, "processor": {"to_q": LINEAR}}}, named)
    assert isinstance(loaded["v"]["processor"]["to_q"], LoRAWrapper)
    assert not isinstance(loaded["v"]["to_q"], LoRAWrapper)


def test_alphas_that_are_not_in_the_arrays_must_be_given(tmp_path):
    state = pair("base_model.model.q", DIFFUSERS)
    for arrays in (state, qwix_block()):
        with pytest.raises(SelectionError, match=r"by load_peft(.|\n)*LoraRule: load_lora_state"):
            load_lora_state(BLOCK, arrays)
    loaded = load_lora_state(BLOCK, state, alpha=4.0)
    assert np.allclose(update(loaded["q"]), 2 * UP @ DOWN, atol=1e-5)
    path = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file(state, path)
    (tmp_path / "adapter_config.json").write_text("{}")
    for source in (path, tmp_path):
        refused("Read it by load_peft", BLOCK, source)


def test_kohyas_names_alphas_and_cores(tmp_path):
    tensors = {
        **pair("lora_unet_down_blocks_0_attn_to_q", KOHYA),
        # An alpha that nobody gave is a whole number in sd-scripts.
        "lora_unet_down_blocks_0_attn_to_q.alpha": np.asarray(1),
        "lora_unet_conv_in.lora_down.weight": normal(2, 3, 1, 1),
        "lora_unet_conv_in.lora_mid.weight": normal(2, 2, 3, 3),
        "lora_unet_conv_in.lora_up.weight": normal(5, 2, 1, 1),
        "lora_unet_conv_in.alpha": np.asarray(4.0, np.float32),
        # Of a model in which it is a linear layer.
        **pair("lora_unet_proj", KOHYA, (normal(2, 3), normal(5, 2))),
        # As sd-scripts reads it: the rank.
        "lora_unet_proj.alpha": np.asarray(0.0, np.float32),
    }
    path = tmp_path / "kohya.safetensors"
    safetensors.numpy.save_file(tensors, path)
    loaded = load_lora_state(UNET, path, prefix="lora_unet_")
    assert np.allclose(update(to_q(loaded)), UP @ DOWN / 2, atol=1e-5)
    names = (f"lora_unet_conv_in.lora_{part}.weight" for part in ("down", "mid", "up"))
    down, mid, up = map(tensors.get, names)
    kernel = np.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    assert np.allclose(update(loaded["conv_in"]), 2 * kernel.reshape(5, -1), atol=1e-4)
    assert np.allclose(update(loaded["proj"]), normal(5, 2) @ normal(2, 3), atol=1e-5)
    wide = {"conv": eqx.nn.Conv2d(3, 5, (1, 3), key=KEY)}
    tall = pair("conv", KOHYA, (normal(2, 3, 3, 1), normal(5, 2, 1, 1)))
    refused(r"expected shape \(2, 3, 1, 3\), got", wide, tall)


def test_kohyas_underscores_are_resolved_by_the_model():
    state = pair("a_b", KOHYA)
    assert isinstance(load_lora_state({"a": {"b": LINEAR}}, state)["a"]["b"], LoRAWrapper)
    model = {"a": {"b": LINEAR}, "a_b": LINEAR}
    refused(r"'a/b', 'a_b' have this name", model, state)
    for path in ("a/b", "a_b"):
        loaded = load_lora_state(model, state, rename={"^a_b$": path})
        assert isinstance(loaded["a_b"], LoRAWrapper) == (path == "a_b")
        assert isinstance(loaded["a"]["b"], LoRAWrapper) == (path == "a/b")


def test_diffusers_configuration_is_read(tmp_path):
    q, proj = (normal(4, 4), normal(6, 4)), (normal(2, 3, 1, 1), normal(5, 2, 1, 1))
    tensors = pair("unet.down_blocks.0.attn.to_q", DIFFUSERS, q) | pair(
        "unet.proj", DIFFUSERS, proj
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"

    def load(arrays, start, **settings):
        text = json.dumps({f"{start}{name}": value for name, value in settings.items()})
        safetensors.numpy.save_file(arrays, path, {"lora_adapter_metadata": text})
        return load_lora_state(UNET, path, prefix=start)

    settings = {"r": 4, "lora_alpha": 6, "use_rslora": True}
    settings |= {"rank_pattern": {"proj": 2}, "alpha_pattern": {"proj": 5}}
    loaded = load(tensors, "unet.", **settings)
    for layer, factors, alpha in ((to_q(loaded), q, 6), (loaded["proj"], proj, 5)):
        A, B = (array.reshape(len(array), -1) for array in factors)
        assert np.allclose(update(layer), alpha / len(A) ** 0.5 * B @ A, atol=1e-5)
    # Without the name of a model in a pipeline.
    alone = {name.removeprefix("unet."): x for name, x in tensors.items() if "proj" in name}
    loaded = load(alone, "", r=2, lora_alpha=2, alpha_pattern={"proj": 20})
    assert loaded["proj"].alpha == 20
    with pytest.raises(PeftFormatError, match="init_lora_weights"):
        load(tensors, "unet.", init_lora_weights="corda", **settings)


def test_other_methods_of_kohya_and_bad_numbers_are_told(tmp_path):
    state = pair("q", KOHYA)
    refused("q.dora_scale: no array of LoRA", BLOCK, {**state, "q.dora_scale": normal(6)})
    refused("alpha: no factors are beside it", BLOCK, {**state, "up.alpha": np.float32(1)})
    second = {**state, "q.lora.down.weight": DOWN}
    refused("a second array for the same factor", BLOCK, second)
    refused("same layer as", BLOCK, {**state, **pair("up", KOHYA)}, rename={"up": "q"})
    with pytest.warns(JnoLoraWarning, match="NaN"):
        load_lora_state(BLOCK, {**state, "q.lora_up.weight": np.full((6, 2), np.nan, "f4")})
    wide = {**state, "q.lora_down.weight": normal(2, 5)}
    refused(r"expected shape \(2, 4\), got \(2, 5\)", BLOCK, wide)
    refused(r"missing\.safetensors", BLOCK, tmp_path / "missing.safetensors")


def test_a_folder_needs_orbax_and_its_files(tmp_path, monkeypatch):
    refused("not a checkpoint of Orbax", BLOCK, tmp_path)
    (tmp_path / "model_params").mkdir()
    (tmp_path / "model_params" / "_METADATA").touch()
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(MissingLibraryError, match=r"pip install \"jno-lora\[orbax\]\""):
        load_lora_state(BLOCK, str(tmp_path))
