"""LoRA of other projects converted and merged, from arrays laid out by the projects' own rules.

The numbers are small whole numbers, so that every sum is exact, and all comparisons are equalities.
"""

import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from hypothesis import given, settings, strategies as st

from jno.lora import JnoLoraWarning, LoRAWrapper, PeftFormatError, SelectionError
from jno.lora.peft import convert_lora, load_lora_state, load_peft
from jno_lora_peft._commands import convert
from jno_lora_peft.states import containers

HEADS, KV, SIZE, WIDTH, HIDDEN, RANK, LAYERS = 4, 2, 3, 9, 5, 2, 2
DIMS = dict(zip("BTSNKHDFCL", (1, 2, 2, HEADS, KV, SIZE, WIDTH, HIDDEN, 2, LAYERS), strict=True))


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).integers(-3, 4, shape).astype(dtype)


def save(path, arrays):
    safetensors.numpy.save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, path)
    return path


def read(path):
    return safetensors.numpy.load_file(path)


# --- the einsums of Gemma's layers in openpi and in gemma

ATTENTION = {
    "q_einsum": ("BTD,NDH->BTNH", "NDH"),
    "kv_einsum": ("BSD,CKDH->CBSKH", "CKDH"),
    "attn_vec_einsum": ("BTNH,NHD->BTD", "NHD"),
}
MODULES = {
    "q_einsum": ["self_attn.q_proj"],
    "kv_einsum": ["self_attn.k_proj", "self_attn.v_proj"],
    "attn_vec_einsum": ["self_attn.o_proj"],
    "gating_einsum": ["mlp.gate_proj", "mlp.up_proj"],
    "linear": ["mlp.down_proj"],
}
FORWARD = {"gating_einsum": ("BTD,CDF->CBTF", "CDF"), "linear": ("BTF,FD->BTD", "FD"), **ATTENTION}


def shape(axes, **other):
    return tuple({**DIMS, **other}[axis] for axis in axes)


def openpi_lora(equation, x, a, b):
    """As openpi's `Einsum` does: the last axis of the weight, or the one before, is the rank."""
    inputs, rest = equation.split(",")
    weight, outputs = rest.split("->")
    low = outputs.replace(weight[-1], "r")
    y = np.einsum(f"{inputs},{weight[:-1]}r->{low}", x, a)
    return np.einsum(f"{low},{weight[:-2]}r{weight[-1]}->{outputs}", y, b)


def gemma_axes(equation):
    """As gemma's `get_lora_einsum_str_and_shapes` does."""
    inputs, rest = equation.split(",")
    weight, outputs = rest.split("->")
    ins = "".join(axis for axis in weight if axis in inputs)
    return ins + "r", "r" + "".join(x for x in weight if x in outputs and x not in inputs)


def openpi(expert="", rank=RANK):
    """openpi's arrays, and for each weight and layer its equation and the function of its LoRA."""
    arrays, laws = {}, {}
    root = "params/PaliGemma/llm/layers"
    for number, (name, (equation, axes)) in enumerate(FORWARD.items()):
        is_attention = name in ATTENTION
        weight = f"attn/{name}{expert}/w" if is_attention else f"mlp{expert}/{name}"
        factor = f"attn/{name}{expert}/lora_" if is_attention else f"mlp{expert}/{name}_lora_"
        a = draw(LAYERS, *shape(axes[:-1]), rank, seed=number)
        b = draw(LAYERS, *shape(axes[:-2]), rank, DIMS[axes[-1]], seed=number + 10)
        arrays |= {
            f"{root}/{weight}/value": draw(LAYERS, *shape(axes), seed=number + 20),
            f"{root}/{factor}a/value": a,
            f"{root}/{factor}b/value": b,
        }
        for layer in range(LAYERS):
            laws[f"{root}/{weight}/value", layer, name] = (
                equation,
                lambda x, equation=equation, a=a[layer], b=b[layer]: openpi_lora(equation, x, a, b),
                # `FeedForward` multiplies by no scale.
                is_attention,
            )
    return arrays, laws


def gemma():
    arrays, laws = {}, {}
    for layer in range(LAYERS):
        for number, (name, (equation, axes)) in enumerate(FORWARD.items()):
            is_attention = name in ATTENTION
            module = f"layer_{layer}/attn/{name}" if is_attention else f"layer_{layer}/mlp"
            weight = f"{module}/w" if is_attention else f"{module}/{name}"
            wrapper = "_LoRAEinsum_0" if is_attention else f"_LoRAEinsum_{name}"
            axes_a, axes_b = gemma_axes(equation)
            a = draw(*shape(axes_a, r=RANK), seed=number + layer)
            b = draw(*shape(axes_b, r=RANK), seed=number + layer + 10)
            arrays |= {
                weight: draw(*shape(axes), seed=number),
                f"{module}/{wrapper}/lora/a": a,
                f"{module}/{wrapper}/lora/b": b,
            }
            inputs, rest = equation.split(",")
            lora = f"{inputs},{axes_a},{axes_b}->{rest.split('->')[1]}"
            laws[weight, layer, name] = (
                equation,
                lambda x, lora=lora, a=a, b=b: np.einsum(lora, x, a, b),
                False,
            )
    return arrays, laws


def is_adapter(node):
    return isinstance(node, LoRAWrapper)


def is_lora(name):
    return "lora" in name


PREFIXES = {
    "openpi": "paligemma_with_expert.paligemma.model.language_model.layers.",
    "openpi_1": "paligemma_with_expert.gemma_expert.model.layers.",
    "gemma": "model.layers.",
}
GEMMAS = {"openpi": openpi, "openpi_1": lambda: openpi("_1"), "gemma": gemma}


@pytest.mark.parametrize("project", GEMMAS)
def test_layers_of_gemma_compute_the_same_merged_and_in_peft(project, tmp_path):
    arrays, laws = GEMMAS[project]()
    source = save(tmp_path / "source.safetensors", arrays)
    alpha = 3.0 if project != "gemma" else None
    merged = convert_lora(source, tmp_path / "merged.safetensors", to="merged", alpha=alpha,
                          verify=True)  # fmt: skip
    assert merged.difference == 0 and not merged.left
    after = read(tmp_path / "merged.safetensors")
    assert after.keys() == {name for name in arrays if not is_lora(name)}
    done = convert_lora(source, tmp_path / "peft", to="peft", alpha=alpha, verify=True)
    assert done.difference == 0 and {*done.left} == after.keys()
    factors = read(tmp_path / "peft" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert len(factors) == 2 * 7 * LAYERS
    for (weight, layer, name), (equation, lora, is_scaled) in laws.items():
        x = draw(*shape(equation.split(",")[0]), seed=layer)
        scale = alpha / RANK if is_scaled else 1.0
        update = scale * lora(x)
        old, new = (
            tensors[weight] if project == "gemma" else tensors[weight][layer]
            for tensors in (arrays, after)
        )
        assert np.array_equal(np.einsum(equation, x, new), np.einsum(equation, x, old) + update)
        # PEFT's modules have two axes, with the heads among the features.
        rows = [
            peft_update(factors, config, f"{PREFIXES[project]}{layer}.{module}", x.reshape(2, -1))
            for module in MODULES[name]
        ]
        assert np.array_equal(np.stack(rows).reshape(update.shape), update)
    # Read by `load_peft`, with the ranks and alphas of each module.
    model = {}
    for name in done.modules:
        A, B = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        *path, last = name.split(".")
        node = model
        for part in path:
            node = node.setdefault(part, {})
        node[last] = eqx.nn.Linear(A.shape[1], len(B), key=jax.random.key(0))
    loaded = jax.tree.leaves(load_peft(model, tmp_path / "peft"), is_leaf=is_adapter)
    assert sorted((x.rank, x.alpha / x.rank) for x in loaded) == sorted(done.modules.values())


def peft_update(factors, config, module, x):
    """As PEFT computes it."""
    A, B = (factors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    rank = config["rank_pattern"].get(f"^{re_escaped(module)}", config["r"])
    alpha = config["alpha_pattern"].get(f"^{re_escaped(module)}", config["lora_alpha"])
    assert len(A) == rank and module in config["target_modules"]
    return alpha / rank * (x @ A.T @ B.T)


def re_escaped(module):
    return module.replace(".", r"\.")


# --- the other projects, whose layers have two matrices or a kernel


def linear(names, base, *, rank=RANK, inputs=(WIDTH,), outputs=(HIDDEN,), torch=False, seed=0):
    """Two factors and the weight, and the update of the weight without the scale."""
    a, b = draw(*inputs, rank, seed=seed), draw(rank, *outputs, seed=seed + 1)
    update = np.tensordot(a, b, 1)
    weight = draw(*update.shape, seed=seed + 2)
    if torch:
        a, b, update, weight = a.T, b.T, update.T, weight.T
    return {**dict(zip(names, (a, b), strict=True)), base: weight}, {base: update}


# Projects that write in the format of another.
FORMATS = {
    "Tunix": "Qwix",
    "Tunix, out of heads": "Qwix",
    "MaxText on Linen": "MaxText",
    "KerasHub, heads first": "Keras",
    "Levanter": "PEFT",
    "diffusers": "PEFT",
}
Q = "model.layers.0.q_proj"
AB = ("lora_a", "lora_b")
PAIRS = {
    "Qwix": (
        linear([f"layers/0/q_proj/kernel_{x}" for x in AB], "layers/0/q_proj/kernel"),
        {"alpha": 6.0}, 3.0, "layers.0.q_proj",
    ),
    "Tunix": (
        linear([f"layers/0/q_proj/w_{x}" for x in AB], "layers/0/q_proj/w", outputs=(HEADS, SIZE)),
        {"alpha": 6.0}, 3.0, "layers.0.q_proj",
    ),
    "Tunix, out of heads": (
        linear([f"layers/0/o_proj/w_{x}" for x in AB], "layers/0/o_proj/w", inputs=(HEADS, SIZE)),
        {"alpha": 6.0}, 3.0, "layers.0.o_proj",
    ),
    "MaxText on Linen": (
        linear([f"params/query/{x}/kernel" for x in AB], "params/query/kernel"),
        {"alpha": 6.0, "rename": {"^params/": ""}}, 3.0, "query",
    ),
    "EasyDeL": (
        linear([f"{Q}.{x}" for x in AB], f"{Q}.base_module.kernel"),
        {}, 1.0, Q,
    ),
    # KerasHub numbers the layers, so their names must be given.
    "KerasHub, heads first": (
        linear([f"lora/3/vars/lora_kernel_{x}" for x in "ab"], "layers/query/vars/0",
               inputs=(HEADS, WIDTH), outputs=(SIZE,)),
        {"rename": {"^lora/3": "layers/query"}}, 1.0, "layers.query",
    ),
    "Keras, heads": (
        linear([f"query/lora_kernel_{x}" for x in "ab"], "query/kernel", inputs=(WIDTH, HEADS)),
        {}, 1.0, "query",
    ),
    "Keras, a kernel": (
        linear([f"conv/lora_kernel_{x}" for x in "ab"], "conv/kernel", inputs=(2, 3, 4)),
        {"alpha": 6.0}, 3.0, "conv",
    ),
    "Keras, a table": (
        linear([f"embed/lora_embeddings_{x}" for x in "ab"], "embed/embeddings", inputs=(7,)),
        {}, 1.0, "embed",
    ),
    "gemma, a dense layer": (
        linear([f"vision/dense/lora/{x}" for x in "ab"], "vision/dense/kernel"),
        {}, 1.0, "vision.dense",
    ),
    "Levanter": (
        linear([f"base_model.model.transformer.h.0.c_attn.lora_{x}.weight" for x in "AB"],
               "transformer.h.0.c_attn.weight", torch=True),
        {"alpha": 6.0}, 3.0, "transformer.h.0.c_attn",
    ),
    "diffusers": (
        linear([f"unet.attn.to_q.lora_{x}.weight" for x in "AB"], "unet.attn.to_q.weight",
               torch=True),
        {"prefix": "unet."}, 1.0, "attn.to_q",
    ),
    "kohya": (
        linear([f"lora_unet_attn_to_q.lora_{x}.weight" for x in ("down", "up")],
               "attn.to_q.weight", torch=True),
        {"prefix": "lora_unet_", "rename": {"^attn_to_q$": "attn/to_q"}}, 1.0, "attn.to_q",
    ),
}  # fmt: skip


@pytest.mark.parametrize("project", PAIRS)
def test_each_project_is_merged_and_converted(project, tmp_path):
    (arrays, updates), options, scale, module = PAIRS[project]
    source = save(tmp_path / "lora.safetensors", {n: x for n, x in arrays.items() if is_lora(n)})
    base = save(tmp_path / "base.safetensors", {name: arrays[name] for name in updates})
    done = convert_lora(source, tmp_path / "merged.safetensors", to="merged", base=base,
                        verify=True, **options)  # fmt: skip
    assert done.difference == 0 and done.sources == [FORMATS.get(project, project.split(",")[0])]
    merged = read(tmp_path / "merged.safetensors")
    for name, update in updates.items():
        assert np.array_equal(merged[name], arrays[name] + scale * update)
    # Into the names of Transformers, by way of PEFT.
    (update,) = updates.values()
    matrix = torch_matrix(project, update)
    theirs = save(tmp_path / "theirs.safetensors", {f"{module}.weight": np.zeros_like(matrix)})
    if "heads" in project and "Keras" in project:
        with pytest.raises(PeftFormatError, match="give a base"):
            convert_lora(source, tmp_path / "peft", to="peft", **options)
        done = convert_lora(source, tmp_path / "peft", to="peft", base=theirs, verify=True,
                            **options)  # fmt: skip
    else:
        done = convert_lora(source, tmp_path / "peft", to="peft", verify=True, **options)
        assert done.modules == {module: (RANK, scale)}
    assert done.difference == 0
    convert_lora(tmp_path / "peft", tmp_path / "again.safetensors", to="merged", base=theirs)
    assert np.array_equal(read(tmp_path / "again.safetensors")[f"{module}.weight"], scale * matrix)


def test_qwix_has_one_axis_for_all_inputs_of_a_weight(tmp_path):
    a, b, kernel = draw(6, RANK), draw(RANK, 5), draw(2, 3, 5)
    arrays = {"out/kernel_lora_a": a, "out/kernel_lora_b": b, "out/kernel": kernel}
    source = save(tmp_path / "lora.safetensors", arrays)
    convert_lora(source, tmp_path / "merged.safetensors", to="merged", alpha=2.0 * RANK)
    merged = read(tmp_path / "merged.safetensors")["out/kernel"]
    assert np.array_equal(merged, kernel + 2 * (a @ b).reshape(2, 3, 5))
    source = save(tmp_path / "other.safetensors", {**arrays, "out/kernel": draw(3, 2, 5).T})
    with pytest.raises(PeftFormatError, match=r"out/kernel has the shape \(5, 2, 3\)"):
        convert_lora(source, tmp_path / "out", to="merged", alpha=2.0)


def torch_matrix(project, update):
    """The update as Torch has it."""
    if project in ("Levanter", "diffusers", "kohya") or "table" in project:
        return update
    if "kernel" in project:
        return np.moveaxis(update, (-1, -2), (0, 1))
    if "Keras" in project and "heads" in project:  # (heads, in, size) or (in, heads, size)
        first = 1 if "first" in project else 0
        return np.moveaxis(update, first, -1).reshape(-1, WIDTH)
    return update.reshape(-1, HIDDEN if "out of heads" in project else np.prod(update.shape[1:])).T


def stacked(axis):
    arrays, updates = {}, {}
    blocks = [linear(["a", "b"], "w", seed=10 * layer, outputs=(2, HIDDEN)) for layer in range(3)]
    names = {"a": "kernel_lora_a", "b": "kernel_lora_b", "w": "kernel"}
    for short, name in names.items():
        arrays[f"layers/up/{name}"] = np.stack([block[0][short] for block in blocks], axis)
    updates["layers/up/kernel"] = np.stack([block[1]["w"] for block in blocks], axis)
    return arrays, updates


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_become_modules(axis, tmp_path):
    arrays, updates = stacked(axis)
    source = save(tmp_path / "lora.safetensors", arrays)
    options = {"alpha": 4.0, "stack_axis": axis}
    shapes = [arrays[f"layers/up/kernel_lora_{x}"].shape for x in "ab"]
    assert shapes[0][axis] == shapes[1][axis] == 3
    rename = {r"^layers/up\[(\d)\]$": r"layers/\1/up"}
    convert_lora(source, tmp_path / "m.safetensors", to="merged", **options)
    merged = read(tmp_path / "m.safetensors")["layers/up/kernel"]
    assert np.array_equal(merged, arrays["layers/up/kernel"] + 2 * updates["layers/up/kernel"])
    with pytest.raises(PeftFormatError, match=r"it is a stack of layers"):
        convert_lora(source, tmp_path / "peft", to="peft", **options)
    done = convert_lora(source, tmp_path / "peft", to="peft", rename=rename, verify=True, **options)
    assert [*done.modules] == [f"layers.{number}.up" for number in range(3)]
    assert done.difference == 0


# --- nothing is dropped

CASE = PAIRS["EasyDeL"][0][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{Q}.lora_b": None}, f"{Q.replace('.', '/')}: its factor B is missing"),
        ({f"{Q}.lora_c": draw(2, 2)}, rf"{Q}.lora_c: no array of LoRA"),
        ({"x.dora_scale": draw(2, 2)}, "x.dora_scale: no array of LoRA"),
        ({f"{Q}.lora_a": draw(WIDTH, 3)}, "must have the axes ir and ro"),
        ({f"{Q}.lora_a": draw(2, WIDTH, RANK)}, "must have the axes"),
        ({f"{Q}.base_module.kernel": draw(4, 4)}, r"has the shape \(4, 4\)(.|\n)*\(9, 5\)"),
        ({f"{Q}.base_module.kernel": draw(WIDTH, HIDDEN, dtype=np.int8)}, "dtype int8"),
        ({f"{Q}.base_module.kernel": None}, "must have one array(.|\n)*has none"),
        ({f"{Q}.kernel": draw(WIDTH, HIDDEN)}, "must have one array(.|\n)*base_module"),
        ({f"{Q.replace('.', '/')}/lora_a": draw(WIDTH, RANK)}, "a second array for the same"),
        (
            {f"{Q}.weight_lora_a": draw(WIDTH, RANK), f"{Q}.weight_lora_b": draw(RANK, HIDDEN)},
            "alpha is not in the arrays",
        ),
        ({"lora/rank": np.array(3)}, "its rank is not 3"),
        ({"y.alpha": np.array(3.0)}, "y/alpha: no factors are beside it"),
        (
            {"a.lora_A.weight": draw(RANK, 3), "a.lora_B.weight": draw(3, RANK),
             "a.lora_a": draw(3, RANK), "a.lora_b": draw(RANK, 3), "a.weight": draw(3, 3)},
            "a second array for the same factor",
        ),
    ],
)  # fmt: skip
def test_bad_arrays_are_named(change, reason, tmp_path):
    arrays = {name: x for name, x in {**CASE, **change}.items() if x is not None}
    source = save(tmp_path / "lora.safetensors", arrays)
    with pytest.raises((PeftFormatError, SelectionError), match=reason):
        convert_lora(source, tmp_path / "out", to="merged")
    assert [*tmp_path.iterdir()] == [source]


def test_bad_calls_and_sources_are_refused(tmp_path):
    source = save(tmp_path / "lora.safetensors", CASE)
    with pytest.raises(SelectionError, match="peft, merged, safetensors, orbax"):
        convert_lora(source, tmp_path / "out", to="torch")
    with pytest.raises(PeftFormatError, match="exists"):
        convert_lora(source, source, to="peft")
    with pytest.raises(SelectionError, match="EasyDeL has no alpha"):
        convert_lora(source, tmp_path / "out", to="peft", alpha=2.0)
    with pytest.raises(PeftFormatError, match="nothing' cannot be read"):
        convert_lora(tmp_path / "nothing", tmp_path / "out", to="peft")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(PeftFormatError, match=r"bad\.safetensors"):
        convert_lora(tmp_path / "bad.safetensors", tmp_path / "out", to="peft")
    with pytest.raises(PeftFormatError, match="no arrays of LoRA"):
        convert_lora(save(tmp_path / "x.safetensors", {"w": draw(2)}), tmp_path / "out", to="peft")
    openpi_arrays, _ = openpi(rank=3)
    path = save(tmp_path / "openpi.safetensors", openpi_arrays)
    with pytest.raises(SelectionError, match=r"attn_vec_einsum: openpi(.|\n)*LoRAConfig"):
        convert_lora(path, tmp_path / "out", to="peft")
    kohya = save(tmp_path / "kohya.safetensors", PAIRS["kohya"][0][0])
    with pytest.raises(PeftFormatError, match="underscores for dots"):
        convert_lora(kohya, tmp_path / "out", to="peft", prefix="lora_unet_")
    twice = tmp_path / "twice"
    twice.mkdir()
    for number in range(2):
        save(twice / f"{number}.safetensors", CASE)
    with pytest.raises(PeftFormatError, match="Two files of the folder"):
        convert_lora(twice, tmp_path / "out", to="peft")
    folder = tmp_path / "peft"
    convert_lora(source, folder, to="peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "init_lora_weights": "pissa"})
    )
    with pytest.raises(PeftFormatError, match="'pissa'"):
        convert_lora(folder, tmp_path / "out", to="safetensors")


def test_published_variants_of_openpi_need_no_alpha(tmp_path):
    arrays, _ = openpi(rank=16)
    source = save(tmp_path / "openpi.safetensors", arrays)
    with pytest.warns(JnoLoraWarning, match="LoRAs are scaled by 1"):
        done = convert_lora(source, tmp_path / "peft", to="peft")
    assert {scale for _, scale in done.modules.values()} == {1.0}


def test_checksums_of_our_files_are_checked(tmp_path):
    source = save(tmp_path / "lora.safetensors", CASE)
    convert_lora(source, tmp_path / "ours.safetensors", to="safetensors")
    content = bytearray((tmp_path / "ours.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "ours.safetensors").write_bytes(content)
    with pytest.raises(PeftFormatError, match="it is damaged"):
        load_lora_state({}, tmp_path / "ours.safetensors")


def test_half_precision_is_rounded_once(tmp_path):
    arrays, _ = linear(["q.lora_a", "q.lora_b"], "q.kernel")
    arrays = {name: (array / 7).astype(jnp.bfloat16) for name, array in arrays.items()}
    source = save(tmp_path / "lora.safetensors", arrays)
    done = convert_lora(source, tmp_path / "m.safetensors", to="merged", verify=True)
    a, b, weight = (np.asarray(x, np.float32) for x in arrays.values())
    assert np.array_equal(read(tmp_path / "m.safetensors")["q.kernel"],
                          (weight + a @ b).astype(jnp.bfloat16))  # fmt: skip
    assert 0 < done.difference < 0.02


def test_a_folder_is_merged_file_by_file_and_resumes(tmp_path, monkeypatch):
    base, parts = tmp_path / "base", {}
    base.mkdir()
    for number in range(3):
        name = f"layers.{number}.q"
        parts[number], _ = linear(
            [f"{name}.lora_a", f"{name}.lora_b"], f"{name}.kernel", seed=number
        )
        weights = {n: x for n, x in parts[number].items() if not is_lora(n)}
        save(base / f"model-{number}.safetensors", {**weights, f"norm.{number}": draw(4)})
    (base / "config.json").write_text("{}")
    factors = {n: x for part in parts.values() for n, x in part.items() if is_lora(n)}
    source, out = save(tmp_path / "lora.safetensors", factors), tmp_path / "out"
    written = []

    def write(path, *args, real=containers.write_safetensors):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, *args)

    monkeypatch.setattr(containers, "write_safetensors", write)
    with pytest.raises(KeyboardInterrupt):
        convert_lora(source, out, to="merged", base=base)
    assert not out.exists() and written == ["model-0.safetensors", "model-1.safetensors"]
    written[:] = ["an earlier call"]
    done = convert_lora(source, out, to="merged", base=base, verify=True)
    assert written[1:] == ["model-2.safetensors"] and done.difference == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora.safetensors", "out"]


# --- random trees


@st.composite
def trees(draw_value):
    """Arrays of a project, with random names, sizes and numbers, and the options to read them."""
    project = draw_value(st.sampled_from(["Qwix", "EasyDeL", "gemma", "PEFT"]))
    size, rank = st.integers(1, 4), draw_value(st.integers(1, 3))
    names = draw_value(st.lists(st.from_regex(r"[a-k]{1,3}(/[a-k0-9]{1,3}){1,2}", fullmatch=True),
                                min_size=1, max_size=4, unique=True))  # fmt: skip
    ends = {
        "Qwix": "/w_lora_{}",
        "EasyDeL": "/lora_{}",
        "gemma": "/lora/{}",
        "PEFT": "/lora_{}/weight",
    }
    arrays = {}
    numbers = np.random.default_rng(draw_value(st.integers(0, 99)))
    for name in names:
        inputs, outputs = draw_value(size), draw_value(size)
        a, b = (
            numbers.normal(size=x).astype(np.float32) for x in ((inputs, rank), (rank, outputs))
        )
        parts = (
            zip("AB", (a.T, b.T), strict=True)
            if project == "PEFT"
            else zip("ab", (a, b), strict=True)
        )
        arrays |= {name + ends[project].format(part): array for part, array in parts}
    return arrays, {"alpha": 3.0} if project == "Qwix" else {}


@settings(max_examples=25, deadline=None)
@given(tree=trees())
def test_random_trees_round_trip_without_a_difference(tree, tmp_path_factory):
    arrays, options = tree
    folder = tmp_path_factory.mktemp("tree")
    source = save(folder / "source.safetensors", arrays)
    there = convert_lora(source, folder / "peft", to="peft", verify=True, **options)
    again = convert_lora(
        folder / "peft", folder / "again.safetensors", to="safetensors", verify=True
    )
    assert there.difference == again.difference == 0 and not there.left + again.left
    assert there.modules.keys() == again.modules.keys() and len(there.modules) == len(arrays) // 2
    # The same numbers, in another order.
    factors = {n: x for n, x in read(folder / "again.safetensors").items() if "alpha" not in n}
    assert sorted(x for array in factors.values() for x in array.ravel()) == sorted(
        x for array in arrays.values() for x in array.ravel()
    )
    scales = {scale for _, scale in there.modules.values()}
    for name, array in read(folder / "again.safetensors").items():
        if name.endswith("alpha"):
            rank = len(factors[name.replace("alpha", "lora_A.weight")])
            assert np.isclose(float(array) / rank, *scales)


@settings(max_examples=15, deadline=None)
@given(tree=trees(), number=st.integers(0, 99))
def test_an_array_that_is_missing_or_renamed_is_named(tree, number, tmp_path_factory):
    arrays, options = tree
    folder = tmp_path_factory.mktemp("tree")
    name = sorted(arrays)[number % len(arrays)]
    for broken in ({}, {f"{name}_lora_x": arrays[name]}):
        rest = {n: x for n, x in arrays.items() if n != name}
        source = save(folder / f"{len(broken)}.safetensors", {**rest, **broken})
        with pytest.raises(PeftFormatError, match=r"is missing"):
            convert_lora(source, folder / "out", to="peft", **options)


# --- the command


def test_the_command_says_what_it_did(tmp_path):
    source = save(tmp_path / "lora.safetensors", CASE)
    call = [str(source), str(tmp_path / "out"), "--to", "peft", "--verify", "--rename", "^model/="]
    result = CliRunner().invoke(convert, call)
    assert result.exit_code == 0, result.output
    for fact in (
        "1 modules of EasyDeL",
        "layers.0.q_proj",
        "1 arrays are not",
        "Largest difference",
    ):
        assert fact in result.output
    assert {*os.listdir(tmp_path / "out")} == {"adapter_config.json", "adapter_model.safetensors"}
    result = CliRunner().invoke(convert, [*call[:-1], "no sign"])
    assert result.exit_code == 2 and "no '='" in result.output


def test_a_state_with_axes_of_its_own_is_converted_first():
    arrays, _ = openpi(rank=16)
    with pytest.raises(PeftFormatError, match="q_einsum: it has the axes of openpi"):
        load_lora_state({}, arrays, prefix="params")


@pytest.mark.parametrize(
    ("names", "alpha", "scale"),
    [(("q.lora_a", "q.lora_b"), None, 1.0), (("q/lora_kernel_a", "q/lora_kernel_b"), 6.0, 3.0)],
)
def test_layers_of_nnx_and_of_keras_are_read_into_a_model(names, alpha, scale):
    a, b = draw(WIDTH, RANK), draw(RANK, HIDDEN)
    model = {"q": eqx.nn.Linear(WIDTH, HIDDEN, key=jax.random.key(0))}
    layer = load_lora_state(model, dict(zip(names, (a, b), strict=True)), alpha=alpha)["q"]
    assert layer.alpha / layer.rank == scale
    assert np.array_equal(layer.lora_B @ layer.lora_A, (a @ b).T)
