"""States of Qwix, Tunix and MaxText against these libraries: `make test-stacks`."""

import importlib.util
import json
import os
import pathlib
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from peft_cases.files import normal, trained

from jno.lora import Net, PeftFormatError, SelectionError
from jno_lora_arrays import declare, plain
from jno_lora_convert import convert_lora, load_lora_state, lora_state

if importlib.util.find_spec("tunix") is None:
    message = "needs google-tunix, which `make test-stacks` installs on Python 3.12"
    if os.environ.get("JNO_LORA_TEST_STACKS"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

import orbax.checkpoint as ocp
import qwix
from eqx_zoo import CausalLM
from flax import nnx
from tunix.models.llama3 import model as llama, params as llama_params
from tunix.sft.checkpoint_manager import CheckpointManager

# Their code promotes dtypes and ranks, and warns.
pytestmark = [pytest.mark.filterwarnings("ignore")]

ALPHA, RANK = 3.0, 2


@pytest.fixture(autouse=True)
def lenient():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class Theirs(nnx.Module):
    """Each product that Qwix adapts: an einsum, a linear layer of one or of two axes, a kernel."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.heads = nnx.List([nnx.Einsum("td,dnh->tnh", (4, 2, 3), rngs=rngs) for _ in range(2)])
        self.out = nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=rngs)
        self.up = nnx.Linear(4, 5, rngs=rngs)
        self.conv = nnx.Conv(5, 3, (3,), kernel_dilation=2, rngs=rngs)

    def __call__(self, x):
        for heads in self.heads:
            x = x + jnp.tanh(self.out(heads(x)))
        return self.conv(self.up(x))


class Ours(eqx.Module):
    heads: list
    out: eqx.nn.Linear
    up: eqx.nn.Linear
    conv: eqx.nn.Conv1d

    def __call__(self, x):
        for heads in self.heads:
            x = x + jnp.tanh(jax.vmap(self.out)(jax.vmap(heads)(x)))
        return self.conv(jax.vmap(self.up)(x).T).T


def twin(theirs):
    def linear(kernel, inputs, bias=None):
        matrix = jnp.asarray(kernel[...]).reshape(inputs, -1).T
        layer = eqx.nn.Linear(inputs, len(matrix), use_bias=bias is not None, key=KEY)
        layer = eqx.tree_at(lambda layer: layer.weight, layer, matrix)
        return layer if bias is None else eqx.tree_at(lambda layer: layer.bias, layer, bias[...])

    conv = eqx.nn.Conv1d(5, 3, 3, dilation=2, padding=2, key=KEY)
    values = theirs.conv.kernel[...].transpose(2, 1, 0), theirs.conv.bias[...][:, None]
    conv = eqx.tree_at(lambda conv: (conv.weight, conv.bias), conv, values)
    heads = [linear(layer.kernel, 4) for layer in theirs.heads]
    out, up = theirs.out, theirs.up
    return Ours(heads, linear(out.kernel, 6, out.bias), linear(up.kernel, 4, up.bias), conv)


KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 4))


def with_lora(theirs, *inputs, rank=RANK, path=".*"):
    """The model with Qwix's LoRA, all factors moved."""
    provider = qwix.LoraProvider(module_path=path, rank=rank, alpha=ALPHA)
    adapted = qwix.apply_lora_to_model(theirs, provider, *inputs, rngs=nnx.Rngs(1))
    keys = iter(jax.random.split(KEY, 1000))
    state = nnx.state(adapted, nnx.LoRAParam)
    moved = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), state)
    nnx.update(adapted, moved)
    return adapted


@pytest.fixture(scope="module")
def theirs():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return with_lora(Theirs(), X)


@pytest.fixture(scope="module")
def plain_twin():
    return twin(Theirs())


def assert_close(a, b):
    assert np.max(np.abs(a - b)) < 1e-5 * np.max(np.abs(b))


def test_a_state_of_qwix_computes_the_same_here(plain_twin, theirs):
    for state in (
        nnx.state(theirs, nnx.LoRAParam),
        nnx.to_pure_dict(nnx.state(theirs, nnx.LoRAParam)),
    ):
        loaded = load_lora_state(plain_twin, state, alpha=ALPHA)
        assert_close(loaded(X), theirs(X))


def test_a_checkpoint_of_tunix_computes_the_same_here(plain_twin, theirs, tmp_path):
    manager = CheckpointManager(str(tmp_path))
    manager.save(7, theirs, save_only_lora_params=True, force=True)
    # As MaxText does.
    metadata = {"lora": {"lora_rank": RANK, "lora_alpha": ALPHA}}
    manager.save(8, theirs, save_only_lora_params=True, force=True, custom_metadata=metadata)
    manager.close()
    for loaded in (
        load_lora_state(plain_twin, tmp_path / "7", alpha=ALPHA),
        load_lora_state(plain_twin, str(tmp_path / "7" / "model_params"), alpha=ALPHA),
        load_lora_state(plain_twin, tmp_path / "8"),
    ):
        assert_close(loaded(X), theirs(X))
    with pytest.raises(SelectionError, match="alpha"):
        load_lora_state(plain_twin, tmp_path / "7")
    with pytest.raises(SelectionError, match="the state has alpha"):
        load_lora_state(plain_twin, tmp_path / "8", alpha=1.0)
    (tmp_path / "8" / "model_params" / "_METADATA").write_text("{")
    with pytest.raises(PeftFormatError, match="Orbax cannot read"):
        load_lora_state(plain_twin, tmp_path / "8")
    with pytest.raises(PeftFormatError, match="the folder of one step"):
        load_lora_state(plain_twin, tmp_path, alpha=ALPHA)


def test_adapters_from_here_compute_the_same_in_qwix_and_tunix(plain_twin, tmp_path):
    # Another rank and alpha than theirs, and a method whose update has twice the rank.
    ours = trained(plain_twin, "lora", alpha=5.0)
    ours = eqx.tree_at(lambda m: m.up, ours, trained(plain_twin.up, "pissa", 1))
    theirs = with_lora(Theirs(), X, rank=3)
    written = lora_state(Net(ours), nnx.state(theirs, nnx.LoRAParam), alpha=ALPHA)
    nnx.update(theirs, written)
    assert_close(theirs(X), ours(X))
    manager = CheckpointManager(str(tmp_path))
    manager.save(1, theirs, save_only_lora_params=True, force=True)
    manager.close()
    restored, manager = with_lora(Theirs(), X, rank=3), CheckpointManager(str(tmp_path))
    manager.maybe_restore(restored, restore_only_lora_params=True)
    manager.close()
    assert_close(restored(X), ours(X))
    # The tree alone, as Orbax saves it.
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", nnx.to_pure_dict(written))
    assert_close(load_lora_state(plain_twin, tmp_path / "tree", alpha=ALPHA)(X), ours(X))


def test_checkpoints_are_merged_and_written_by_orbax(plain_twin, theirs, tmp_path):
    params = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "full", params)
        done = convert_lora(
            tmp_path / "full", tmp_path / "arrays", to="merged", alpha=ALPHA, verify=True
        )
        merged = checkpointer.restore(tmp_path / "arrays")
    assert done.difference < 1e-6 and not done.left
    definition, state = nnx.split(Theirs())
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(merged))
    assert_close(nnx.merge(definition, state)(X), theirs(X))
    # The adapter alone, by way of PEFT, without the kernel, which PEFT has in other axes.
    lora = nnx.to_pure_dict(nnx.state(theirs, nnx.LoRAParam))
    del lora["conv"]
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "lora", lora)
    convert_lora(tmp_path / "lora", tmp_path / "peft", to="peft", alpha=ALPHA, verify=True)
    done = convert_lora(tmp_path / "peft", tmp_path / "qwix", to="orbax", verify=True)
    assert done.difference == 0
    loaded = load_lora_state(plain_twin, tmp_path / "qwix")
    direct = load_lora_state(plain_twin, lora, alpha=ALPHA)
    assert_close(loaded(X), direct(X))


def test_a_merged_tree_of_orbax_keeps_its_structure_and_is_not_copied(tmp_path):
    a, b, kernel = (normal(*shape) for shape in ((600, 2), (2, 600), (600, 600)))
    base = {"layers": [{"kernel": kernel}] * 9, "a/b": {"w": np.ones(2, "complex64")}, "c": None}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "lora", {"layers": [{"lora_a": a, "lora_b": b}]})
        checkpointer.save(tmp_path / "base", base)
        checkpointer.save(tmp_path / "text", {"name": "a"})
        tracemalloc.start()
        convert_lora(tmp_path / "lora", tmp_path / "merged", to="merged", base=tmp_path / "base")
        assert tracemalloc.get_traced_memory()[1] < 6 * kernel.nbytes
        tracemalloc.stop()
        merged = checkpointer.restore(tmp_path / "merged")
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    with pytest.raises(PeftFormatError, match=r"name in .* is not an array"):
        convert_lora(tmp_path / "lora", tmp_path / "out", to="merged", base=tmp_path / "text")


def test_parameters_of_flax_take_the_state_as_it_is(theirs):
    # The parameters of a model of Flax, declared as docs/flax-and-haiku.md does.
    definition, params = nnx.split(Theirs())
    pure = nnx.to_pure_dict(params)
    axes = {"heads/.*/kernel": "ioo", "out/kernel": "iio", "up/kernel": "io", "conv/kernel": "iio"}
    loaded = load_lora_state(declare(pure, axes), nnx.state(theirs, nnx.LoRAParam), alpha=ALPHA)
    nnx.replace_by_pure_dict(params, plain(loaded))
    assert_close(nnx.merge(definition, params)(X), theirs(X))


# The names of Tunix's language models, and of Hugging Face's, which eqx-zoo has.
TUNIX = {r"^layers/": "model/layers/", "/attn/": "/self_attn/"}
SIZES = {"num_layers": 2, "vocab_size": 32, "embed_dim": 16, "hidden_dim": 24, "num_heads": 4}
IDS = jnp.array([[1, 5, 3, 18, 30, 2]])


def hugging_face(folder):
    """A Llama as Hugging Face saves it, which Tunix and eqx-zoo read."""
    draw = np.random.default_rng(0).normal

    def weight(*shape):
        return draw(size=shape, scale=0.3).astype(np.float32)

    shapes = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16),
              "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16),
              "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
              "mlp.down_proj": (16, 24)}  # fmt: skip
    tensors = {"model.embed_tokens.weight": weight(32, 16), "model.norm.weight": 1 + weight(16),
               "lm_head.weight": weight(32, 16)}  # fmt: skip
    for number in range(2):
        for name, shape in shapes.items():
            tensors[f"model.layers.{number}.{name}.weight"] = weight(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{number}.{name}.weight"] = 1 + weight(16)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32,
              "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
              "rope_theta": 1e6, "tie_word_embeddings": False, "hidden_act": "silu",
              "max_position_embeddings": 64, "torch_dtype": "float32"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def their_llama(folder):
    # Tunix 0.1.7 has this base in its code, whatever the configuration says.
    config = llama.ModelConfig(
        **SIZES, num_kv_heads=2, head_dim=4, rope_theta=1_000_000, norm_eps=1e-5
    )
    return llama_params.create_model_from_safe_tensors(str(folder), config, dtype=jnp.float32)


def their_logits(model):
    mask = jnp.tril(jnp.ones((1, IDS.shape[1], IDS.shape[1]), bool))
    return model(IDS, jnp.arange(IDS.shape[1])[None], None, mask)[0][0]


def our_logits(model):
    return eqx.filter_jit(model)(IDS[0])[0]


def test_a_llama_of_tunix_and_the_same_llama_of_eqx_zoo(tmp_path):
    hugging_face(tmp_path)
    theirs, ours = their_llama(tmp_path), CausalLM.from_pretrained(str(tmp_path))
    assert_close(our_logits(ours), their_logits(theirs))
    mask = jnp.tril(jnp.ones((1, 6, 6), bool))
    path = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    adapted = with_lora(theirs, IDS, jnp.arange(6)[None], None, mask, path=path)
    state = nnx.state(adapted, nnx.LoRAParam)
    loaded = load_lora_state(ours, state, alpha=ALPHA, rename=TUNIX)
    assert_close(our_logits(loaded), their_logits(adapted))
    with pytest.raises(AssertionError):
        assert_close(our_logits(ours), their_logits(adapted))
    # Adapters from here, in Tunix.
    again = trained(ours, "lora", target="layers/.*proj")
    nnx.update(adapted, lora_state(again, state, alpha=ALPHA, rename=TUNIX))
    assert_close(their_logits(adapted), our_logits(again))


# Before the tests of MaxText, which replaces a function of JAX when it is imported.
def test_tunix_trains_methods_of_the_zoo_as_its_own_lora(capsys):
    path = pathlib.Path(__file__).parents[3] / "examples" / "tunix_dora.py"
    spec = importlib.util.spec_from_file_location("tunix_dora", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.main(["--quick"])
    for method in example.METHODS:
        (restored,) = (losses[name] for name in losses if name == f"{method}, restored at step 5")
        assert losses[method] < losses["untouched"] and restored == losses[method]
    for method in ("lora", "dora", "pissa"):
        merged = losses[f"{method}, merged into a Llama3"]
        assert merged == pytest.approx(losses[method], rel=1e-4)
    # DoRA has a magnitude for each output, beside LoRA's factors.
    printed = capsys.readouterr().out
    assert "LoRA of Tunix: 4,096 parameters" in printed and "dora: 4,608 parameters" in printed


@pytest.fixture(scope="module")
def maxtext():
    """A small Llama of MaxText, whose three layers are scanned, and the same with LoRA."""
    import maxtext
    from maxtext.configs import pyconfig
    from maxtext.utils import lora_utils, maxtext_utils, model_creation_utils

    base = pathlib.Path(next(iter(maxtext.__path__))) / "configs" / "base.yml"
    config = pyconfig.initialize(
        ["", str(base)], run_name="test", enable_checkpointing=False, base_emb_dim=16,
        base_num_query_heads=4, base_num_kv_heads=2, head_dim=4, base_mlp_dim=24,
        base_num_decoder_layers=3, vocab_size=32, max_target_length=8, dtype="float32",
        weight_dtype="float32", skip_jax_distributed_system=True, log_config=False,
        attention="dot_product", decoder_block="llama2", matmul_precision="highest",
        lora={"enable_lora": True, "lora_rank": RANK, "lora_alpha": ALPHA},
    )  # fmt: skip
    mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(config), config.mesh_axes)

    def make():
        return model_creation_utils.from_config(config, mesh=mesh, rngs=nnx.Rngs(0))

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), mesh:
        adapted = lora_utils.apply_lora_to_model(make(), mesh, config)
        yield config, make(), adapted, mesh


SCANNED = {r"^decoder/layers/(\w+)/(\w+)\[(\d)\]$": r"\1/\3/\2"}


def test_a_scanned_llama_of_maxtext(maxtext):
    _, plain_model, adapted, mesh = maxtext
    keys = iter(jax.random.split(KEY, 100))
    state = nnx.state(adapted, nnx.LoRAParam)
    moved = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), state)
    nnx.update(adapted, moved)
    # A list of layers for each stack, to hold the adapters.
    sizes = {"query": (16, 16), "key": (16, 8), "value": (16, 8), "out": (16, 16)}
    mlp = {"wi_0": (16, 24), "wi_1": (16, 24), "wo": (24, 16)}
    ours = {
        part: [{name: eqx.nn.Linear(*size, use_bias=False, key=KEY) for name, size in named.items()}
               for _ in range(3)]
        for part, named in (("self_attention", sizes), ("mlp", mlp))
    }  # fmt: skip
    loaded = load_lora_state(ours, moved, alpha=ALPHA, rename=SCANNED)
    # Their model without LoRA, with the updates that the adapters here have.
    layers = plain_model.decoder.layers
    for part, blocks in loaded.items():
        for name in blocks[0]:
            kernel = getattr(getattr(layers, part), name).kernel
            values = np.array(kernel[...])
            for number, block in enumerate(blocks):
                layer = block[name]
                update = layer.alpha / layer.rank * layer.lora_B @ layer.lora_A
                values[:, number] += np.asarray(update.T).reshape(values[:, number].shape)
            kernel[...] = jnp.asarray(values)
    positions = jnp.arange(6)[None]
    with mesh:
        logits = [model(IDS, positions) for model in (plain_model, adapted)]
    assert_close(*logits)
    written = lora_state(loaded, moved, alpha=ALPHA, rename=SCANNED)
    for theirs, again in zip(jax.tree.leaves(moved), jax.tree.leaves(written), strict=True):
        assert np.allclose(theirs, again, atol=1e-6)
