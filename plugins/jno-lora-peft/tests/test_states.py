"""LoRA of Qwix, Tunix, MaxText, diffusers and kohya, from arrays that are made here."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

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
from jno.lora.peft import load_lora_state, lora_state

KEY = jax.random.key(0)


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def update(layer):
    """The update of a layer as one matrix for each layer of a stack, in NumPy."""
    A, B = np.asarray(layer.lora_A, np.float64), np.asarray(layer.lora_B, np.float64)
    return type(layer).low_rank_scale(layer.rank, layer.alpha) * B @ A


def blocks(number=2):
    q, up = eqx.nn.Linear(4, 6, key=KEY), eqx.nn.Linear(4, 6, key=KEY)
    return [{"q": q, "up": up} for _ in range(number)]


def stack(model):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0],
                        *model)  # fmt: skip


def qwix_block(number):
    return {
        # An einsum with heads, as a variable of Flax or Orbax has its array.
        "q": {"w_lora_a": {"value": normal(4, 2) + number},
              "w_lora_b": {"value": normal(2, 2, 3)}},
        "up": {"kernel_lora_a": normal(4, 2), "kernel_lora_b": normal(2, 6) + number},
    }  # fmt: skip


def expected(block):
    a, b = (array["value"] for array in block["q"].values())
    return {"q": (a @ b.reshape(2, 6)).T, "up": np.matmul(*block["up"].values()).T}


def assert_updates(layers, blocks, scale):
    for layer, block in zip(layers, blocks, strict=True):
        for name, matrix in expected(block).items():
            assert np.allclose(update(layer[name]), scale * matrix, atol=1e-5)


def test_qwix_state_is_read_and_written_back():
    model = {"layers": blocks(), "conv": eqx.nn.Conv(2, 3, 5, (3, 2), key=KEY)}
    a, b = normal(3, 2, 3, 2), normal(2, 5)
    state = {
        "layers": {number: qwix_block(number) for number in range(2)},
        "conv": {"kernel_lora_a": a, "kernel_lora_b": b},
    }
    loaded = load_lora_state(model, state, alpha=3.0)
    assert_updates(loaded["layers"], state["layers"].values(), 1.5)
    # A kernel of Flax is (height, width, in, out).
    kernel = np.einsum("hwir,ro->oihw", a, b).reshape(5, -1)
    assert np.allclose(update(loaded["conv"]), 1.5 * kernel, atol=1e-5)

    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
    written = lora_state(Net(loaded), like, alpha=3.0)
    for ours, theirs in zip(jax.tree.leaves(written), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype and np.allclose(ours, theirs, atol=1e-6)


def test_a_state_of_another_alpha_rank_and_dtype_has_the_same_update():
    loaded = load_lora_state(blocks(1)[0], qwix_block(1), alpha=3.0)
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


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("here", ["a stack", "a list"])
def test_a_stack_of_maxtext_is_read_and_written(axis, here):
    # Three layers, so that only one axis can be meant.
    parts = [qwix_block(number) for number in range(3)]
    layers = jax.tree.map(lambda *arrays: np.stack(arrays, axis), *parts)
    state = {"decoder": {"layers": layers}}
    if here == "a stack":
        model, rename = stack(blocks(3)), {"^decoder/layers/": ""}
    else:
        model, rename = blocks(3), {r"^decoder/layers/(.*)\[(\d+)\]$": r"\2/\1"}
    loaded = load_lora_state(model, state, alpha=2.0, rename=rename)
    if here == "a list":
        assert_updates(loaded, parts, 1)
    else:
        for name in ("q", "up"):
            matrices = [expected(part)[name] for part in parts]
            assert np.allclose(update(loaded[name]), matrices, atol=1e-5)
        with pytest.raises(PeftFormatError, match=r"q\[1\]: the state has no arrays for it"):
            lora_state(loaded, parts[0], alpha=2.0, rename={"$": "[0]"})
    written = lora_state(loaded, state, alpha=2.0, rename=rename)
    for ours, theirs in zip(jax.tree.leaves(written), jax.tree.leaves(state), strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)


def test_maxtexts_names_in_linen():
    a, b = normal(4, 3, 2), normal(2, 3, 2, 3)  # inputs, layers, rank; rank, layers, heads, size
    state = {"params": {"value": {"lora_a.kernel": a, "lora_b.kernel": b, "kernel": None}}}
    loaded = load_lora_state(
        [layer["q"] for layer in blocks(3)],
        state,
        alpha=2.0,
        rename={r"params/value\[(\d)\]": r"\1"},
    )
    for number, layer in enumerate(loaded):
        wanted = (a[:, number] @ b[:, number].reshape(2, 6)).T
        assert np.allclose(update(layer), wanted, atol=1e-5)


def test_an_open_axis_must_be_said():
    model = stack([eqx.nn.Linear(2, 3, key=KEY)] * 2)
    state = {"kernel_lora_a": normal(2, 2, 2), "kernel_lora_b": normal(2, 2, 3)}
    with pytest.raises(PeftFormatError, match="stack_axis=0 or stack_axis=1"):
        load_lora_state(model, state, alpha=2.0)
    with pytest.raises(SelectionError, match="stack_axis must be 0 or 1, got True"):
        load_lora_state(model, state, alpha=2.0, stack_axis=True)
    a, b = state.values()
    for axis, subscripts in enumerate(("lir,lro->loi", "ilr,rlo->loi")):
        loaded = load_lora_state(model, state, alpha=2.0, stack_axis=axis)
        assert np.allclose(update(loaded), np.einsum(subscripts, a, b), atol=1e-5)


def test_everything_that_does_not_fit_is_listed():
    model = {"layers": blocks(1), "conv": eqx.nn.Conv1d(4, 6, 3, groups=2, key=KEY)}
    q, up = qwix_block(0).values()
    state = {
        "layers": [{"q": {"w_lora_a": q["w_lora_a"]}, "up": {**up, "kernel": normal(4, 6)}}],
        "other": {"kernel_lora_a": normal(4, 2), "kernel_lora_b": normal(2, 6)},
        "conv": {"kernel_lora_a": normal(3, 2, 2), "kernel_lora_b": normal(2, 6)},
    }
    with pytest.raises(PeftFormatError) as caught:
        load_lora_state(model, state, alpha=1.0)
    text = str(caught.value)
    assert "layers/0/up/kernel: no array of LoRA has such a name" in text
    assert "layers/0/q: its factor B is missing" in text
    assert "other: the model has no such layer" in text
    assert "conv: the layer has 2 groups" in text
    assert text.endswith("Nothing was loaded.")

    state = {"layers": [{"q": {"w_lora_a": normal(5, 2), "w_lora_b": normal(2, 6)}}]}
    with pytest.raises(PeftFormatError, match=r"q: expected factors \(4, rank\) and \(rank, 6\)"):
        load_lora_state(model, state, alpha=1.0)
    two = {**up, **q}
    with pytest.raises(PeftFormatError, match="q/w: it stands for the same layer as 'q/kernel'"):
        load_lora_state(blocks(1)[0], {"q": two}, alpha=1.0)
    with pytest.raises(PeftFormatError, match=r"moe/w: the model has no such layer"):
        load_lora_state(blocks(1)[0], {"moe": two}, alpha=1.0)
    for other, stacked in ((blocks(1)[0], "one layer"), (stack(blocks(2)), "a stack of 2")):
        with pytest.raises(PeftFormatError, match=rf"has {stacked} at 'q', and no \[3\]"):
            load_lora_state(other, {"q": q}, alpha=1.0, rename={"q": "q[3]"})
    shared = eqx.nn.Shared(blocks(1)[0], lambda m: m["up"].weight, lambda m: m["q"].weight)
    with pytest.raises(PeftFormatError, match="other layers read its weight"):
        load_lora_state(shared, {"q": q}, alpha=1.0, rename={"^": "pytree/"})
    with pytest.raises(PeftFormatError, match="No module of the file is in the model"):
        load_lora_state(model, {"nothing": qwix_block(0)}, alpha=1.0)
    with pytest.raises(PeftFormatError, match="holds no arrays of LoRA"):
        load_lora_state(model, {}, alpha=1.0)
    loaded = load_lora_state(model, {"layers": [qwix_block(0)]}, alpha=1.0)
    with pytest.raises(PeftFormatError, match="carries a LoRALinear already"):
        load_lora_state(loaded, {"layers": [qwix_block(0)]}, alpha=1.0)


def test_alpha_is_not_in_qwixs_arrays():
    with pytest.raises(SelectionError, match=r"LoraRule: load_lora_state"):
        load_lora_state(blocks(1)[0], qwix_block(0))
    loaded = load_lora_state(blocks(1)[0], qwix_block(0), alpha=1.0)
    for alpha in (0.0, float("nan"), float("inf")):
        with pytest.raises(SelectionError, match="alpha must be a finite number, and not 0"):
            load_lora_state(blocks(1)[0], qwix_block(0), alpha=alpha)
        with pytest.raises(SelectionError, match="alpha must be a finite number, and not 0"):
            lora_state(loaded, qwix_block(0), alpha=alpha)


def test_a_convolution_of_size_1_and_an_embedding():
    model = {"conv": eqx.nn.Conv2d(3, 5, 1, key=KEY), "embed": eqx.nn.Embedding(7, 4, key=KEY)}
    a, b = normal(7, 2), normal(2, 4)
    state = {
        "conv": {"kernel_lora_a": normal(3, 2), "kernel_lora_b": normal(2, 5)},
        "embed": {"embedding_lora_a": a, "embedding_lora_b": b},
    }
    loaded = load_lora_state(model, state, alpha=2.0)
    assert np.allclose(update(loaded["conv"]), (normal(3, 2) @ normal(2, 5)).T, atol=1e-5)
    assert np.allclose(merge_lora(loaded)["embed"].weight - model["embed"].weight, a @ b, atol=1e-5)
    written = lora_state(loaded, state, alpha=2.0)
    for ours, theirs in zip(jax.tree.leaves(written), jax.tree.leaves(state), strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)
    torch = {"embed.lora_embedding_A": a.T, "embed.lora_embedding_B": b.T}
    loaded = load_lora_state(model, torch)
    assert np.allclose(merge_lora(loaded)["embed"].weight - model["embed"].weight, a @ b, atol=1e-5)


def test_adapters_that_the_state_cannot_hold_are_listed():
    loaded = load_lora_state(blocks(1)[0], qwix_block(0), alpha=2.0)
    like = {"up": {"kernel_lora_a": normal(4, 1), "kernel_lora_b": normal(1, 6)}}
    with pytest.raises(PeftFormatError) as caught:
        lora_state(loaded, like, alpha=2.0)
    assert "up: its update has rank 2, and the state has room for rank 1" in str(caught.value)
    assert "q: the state has no arrays for it" in str(caught.value)
    with pytest.raises(PeftFormatError, match="'q' has no adapter to write"):
        lora_state({**loaded, "q": blocks(1)[0]["q"]}, qwix_block(0), alpha=2.0)
    ia3 = apply_lora(blocks(1)[0]["q"], 1, key=KEY, wrapper="ia3")
    with pytest.raises(PeftFormatError, match="not a product of two factors"):
        lora_state(ia3, qwix_block(0)["q"], alpha=2.0)
    with pytest.raises(SelectionError, match="alpha must be"):
        lora_state(loaded, like, alpha=0.0)
    torch = {"up.lora_down.weight": normal(2, 4), "up.lora_up.weight": normal(6, 2)}
    with pytest.raises(PeftFormatError, match="are read, not written"):
        lora_state(loaded, torch, alpha=2.0)


def unet():
    return {
        "down_blocks": [{"attn": {"to_q": eqx.nn.Linear(4, 6, key=KEY)}}],
        "to_out": [eqx.nn.Linear(6, 4, key=KEY), eqx.nn.Dropout()],
        "conv_in": eqx.nn.Conv2d(3, 5, 3, padding=1, key=KEY),
        "proj": eqx.nn.Conv2d(3, 5, 1, key=KEY),
    }


def test_diffusers_names_old_and_new():
    q, out = (normal(2, 4), normal(6, 2)), (normal(3, 6), normal(4, 3))
    new = {
        "unet.down_blocks.0.attn.to_q.lora_A.weight": q[0],
        "unet.down_blocks.0.attn.to_q.lora_B.weight": q[1],
        "unet.to_out.0.lora_A.default.weight": out[0],
        "unet.to_out.0.lora_B.default.weight": out[1],
        "text_encoder.q_proj.lora_linear_layer.down.weight": q[0],
        "text_encoder.q_proj.lora_linear_layer.up.weight": q[1],
    }
    old = {
        "unet.down_blocks.0.attn.processor.to_q_lora.down.weight": q[0],
        "unet.down_blocks.0.attn.processor.to_q_lora.up.weight": q[1],
        "unet.to_out.lora.down.weight": out[0],
        "unet.to_out.lora.up.weight": out[1],
        "unet.to_out.alpha": np.float32(3.0),
    }
    for state in (new, old):
        loaded = load_lora_state(unet(), state, prefix="unet.")
        # Without an alpha, the scale is 1.
        assert np.allclose(update(loaded["down_blocks"][0]["attn"]["to_q"]), q[1] @ q[0], atol=1e-5)
        assert np.allclose(update(loaded["to_out"][0]), out[1] @ out[0], atol=1e-5)
    encoder = load_lora_state(
        {"q_proj": eqx.nn.Linear(4, 6, key=KEY)}, new, prefix="text_encoder.", alpha=4.0
    )
    assert np.allclose(update(encoder["q_proj"]), 2 * q[1] @ q[0], atol=1e-5)
    with pytest.raises(PeftFormatError, match="none with this prefix"):
        load_lora_state(unet(), new, prefix="transformer.")
    # A processor of the model comes before the processor of a name.
    linear = eqx.nn.Linear(4, 6, key=KEY)
    named = {"processor.to_q.lora_A.weight": q[0], "processor.to_q.lora_B.weight": q[1]}
    named = {f"v.{name}": array for name, array in named.items()}
    loaded = load_lora_state({"v": {"to_q": linear, "processor": {"to_q": linear}}}, named)
    assert type(loaded["v"]["processor"]["to_q"]).__name__ == "LoRALinear"
    assert type(loaded["v"]["to_q"]) is eqx.nn.Linear


def test_files_of_peft_are_left_to_load_peft(tmp_path):
    names = (f"base_model.model.q.lora_{part}.weight" for part in "AB")
    state = dict(zip(names, (normal(2, 4), normal(6, 2)), strict=True))
    with pytest.raises(SelectionError, match="by load_peft"):
        load_lora_state(blocks(1)[0], state)
    loaded = load_lora_state(blocks(1)[0], state, alpha=4.0)
    assert np.allclose(update(loaded["q"]), 2 * normal(6, 2) @ normal(2, 4), atol=1e-5)
    path = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file(state, path)
    (tmp_path / "adapter_config.json").write_text("{}")
    for source in (path, tmp_path):
        with pytest.raises(PeftFormatError, match=r"Read it by load_peft"):
            load_lora_state(blocks(1)[0], source, alpha=4.0)


def test_kohyas_names_alphas_and_cores(tmp_path):
    tensors = {
        "lora_unet_down_blocks_0_attn_to_q.lora_down.weight": normal(2, 4),
        "lora_unet_down_blocks_0_attn_to_q.lora_up.weight": normal(6, 2),
        # An alpha that nobody gave is a whole number in sd-scripts.
        "lora_unet_down_blocks_0_attn_to_q.alpha": np.int64(1),
        "lora_unet_conv_in.lora_down.weight": normal(2, 3, 1, 1),
        "lora_unet_conv_in.lora_mid.weight": normal(2, 2, 3, 3),
        "lora_unet_conv_in.lora_up.weight": normal(5, 2, 1, 1),
        "lora_unet_conv_in.alpha": np.float32(4.0),
        # Of a model in which it is a linear layer.
        "lora_unet_proj.lora_down.weight": normal(2, 3),
        "lora_unet_proj.lora_up.weight": normal(5, 2),
        # As sd-scripts reads it: the rank.
        "lora_unet_proj.alpha": np.float32(0.0),
    }
    path = tmp_path / "kohya.safetensors"
    safetensors.numpy.save_file({name: np.asarray(array) for name, array in tensors.items()}, path)
    loaded = load_lora_state(unet(), path, prefix="lora_unet_")
    q = tensors["lora_unet_down_blocks_0_attn_to_q.lora_up.weight"] @ normal(2, 4)
    assert np.allclose(update(loaded["down_blocks"][0]["attn"]["to_q"]), q / 2, atol=1e-5)
    names = (f"lora_unet_conv_in.lora_{part}.weight" for part in ("down", "mid", "up"))
    down, mid, up = map(tensors.get, names)
    kernel = np.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    assert np.allclose(update(loaded["conv_in"]), 2 * kernel.reshape(5, -1), atol=1e-4)
    assert np.allclose(update(loaded["proj"]), normal(5, 2) @ normal(2, 3), atol=1e-5)
    wide = {"conv": eqx.nn.Conv2d(3, 5, (1, 3), key=KEY)}
    tall = {"conv.lora_down.weight": normal(2, 3, 3, 1), "conv.lora_up.weight": normal(5, 2, 1, 1)}
    with pytest.raises(PeftFormatError, match=r"expected shape \(2, 3, 1, 3\), got"):
        load_lora_state(wide, tall)


def test_kohyas_underscores_are_resolved_by_the_model():
    linear = eqx.nn.Linear(4, 6, key=KEY)
    state = {"a_b.lora_down.weight": normal(2, 4), "a_b.lora_up.weight": normal(6, 2)}
    loaded = load_lora_state({"a": {"b": linear}}, state)
    assert type(loaded["a"]["b"]).__name__ == "LoRALinear"
    model = {"a": {"b": linear}, "a_b": linear}
    with pytest.raises(PeftFormatError, match=r"'a/b', 'a_b' have this name"):
        load_lora_state(model, state)
    for path in ("a/b", "a_b"):
        loaded = load_lora_state(model, state, rename={"^a_b$": path})
        assert isinstance(loaded["a_b"], LoRAWrapper) == (path == "a_b")
    model = {"a": {"b": [linear]}, "a_b": [linear]}
    state = {f"a_b_0{name[3:]}": array for name, array in state.items()}
    with pytest.raises(PeftFormatError, match=r"'a/b/0', 'a_b/0' have this name"):
        load_lora_state(model, state)
    loaded = load_lora_state(model, state, rename={"^a_b_0$": "a/b/0"})
    assert type(loaded["a"]["b"][0]).__name__ == "LoRALinear"


def test_diffusers_configuration_is_read(tmp_path):
    names = ("lora_A", "lora_B")
    q = {f"unet.down_blocks.0.attn.to_q.{n}.weight": normal(*s)
         for n, s in zip(names, [(4, 4), (6, 4)], strict=True)}  # fmt: skip
    proj = {f"unet.proj.{n}.weight": normal(*s)
            for n, s in zip(names, [(2, 3, 1, 1), (5, 2, 1, 1)], strict=True)}  # fmt: skip
    settings = {"r": 4, "lora_alpha": 6, "rank_pattern": {"proj": 2}, "use_rslora": True}
    settings["alpha_pattern"] = {"proj": 5}
    path = tmp_path / "pytorch_lora_weights.safetensors"

    def load():
        text = json.dumps({f"unet.{name}": value for name, value in settings.items()})
        metadata = {"lora_adapter_metadata": text}
        safetensors.numpy.save_file({**q, **proj}, path, metadata)
        return load_lora_state(unet(), path, prefix="unet.")

    loaded = load()
    for layer, arrays, alpha in (
        (loaded["down_blocks"][0]["attn"]["to_q"], q, 6),
        (loaded["proj"], proj, 5),
    ):
        A, B = (array.reshape(len(array), -1) for array in arrays.values())
        assert np.allclose(update(layer), alpha / len(A) ** 0.5 * B @ A, atol=1e-5)
    # Without the name of a model in a pipeline.
    text = json.dumps({"r": 2, "lora_alpha": 2, "alpha_pattern": {"proj": 20}})
    alone = {name.removeprefix("unet."): array for name, array in proj.items()}
    safetensors.numpy.save_file(alone, path, {"lora_adapter_metadata": text})
    assert load_lora_state(unet(), path)["proj"].alpha == 20
    settings["init_lora_weights"] = "corda"
    with pytest.raises(PeftFormatError, match="init_lora_weights"):
        load()


def test_other_methods_of_kohya_and_bad_numbers_are_told(tmp_path):
    state = {"q.lora_down.weight": normal(2, 4), "q.lora_up.weight": normal(6, 2)}
    with pytest.raises(PeftFormatError, match=r"q.dora_scale: no array of LoRA"):
        load_lora_state(blocks(1)[0], {**state, "q.dora_scale": normal(6)})
    with pytest.raises(PeftFormatError, match=r"alpha: no factors are beside it"):
        load_lora_state(blocks(1)[0], {**state, "up.alpha": np.float32(1)})
    with pytest.raises(PeftFormatError, match="a second array for the same factor"):
        load_lora_state(blocks(1)[0], {**state, "q.lora.down.weight": normal(2, 4)})
    both = {**state, **{name.replace("q", "up"): array for name, array in state.items()}}
    with pytest.raises(PeftFormatError, match="same layer as"):
        load_lora_state(blocks(1)[0], both, rename={"up": "q"})
    with pytest.warns(JnoLoraWarning, match="NaN"):
        load_lora_state(blocks(1)[0], {**state, "q.lora_up.weight": np.full((6, 2), np.nan, "f4")})
    with pytest.raises(PeftFormatError, match=r"expected shape \(2, 4\), got \(2, 5\)"):
        load_lora_state(blocks(1)[0], {**state, "q.lora_down.weight": normal(2, 5)})
    with pytest.raises(PeftFormatError, match=r"missing\.safetensors"):
        load_lora_state(blocks(1)[0], tmp_path / "missing.safetensors")


def test_a_folder_needs_orbax_and_its_files(tmp_path, monkeypatch):
    with pytest.raises(PeftFormatError, match="not a checkpoint of Orbax"):
        load_lora_state(blocks(1)[0], tmp_path)
    (tmp_path / "model_params").mkdir()
    (tmp_path / "model_params" / "_METADATA").touch()
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(MissingLibraryError, match=r"pip install \"jno-lora\[orbax\]\""):
        load_lora_state(blocks(1)[0], str(tmp_path))
