"""LoRA of other projects converted and merged, from arrays laid out by the projects' own rules.

The numbers are small whole numbers, so that every sum is exact, and all comparisons are equalities.
"""

import functools
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

from jno.lora import JnoLoraWarning, Net, PeftFormatError, SelectionError
from jno_lora_convert import _merge, convert_lora, extract_peft, load_lora_state
from jno_lora_convert._commands import convert
from jno_lora_peft import load_peft, save_peft

HEADS, KV, SIZE, WIDTH, HIDDEN, RANK, LAYERS = 4, 2, 3, 9, 5, 2, 2
DIMS = dict(zip("BTSNKHDFCL", (1, 2, 2, HEADS, KV, SIZE, WIDTH, HIDDEN, 2, LAYERS), strict=True))


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).integers(-3, 4, shape).astype(dtype)


def save(path, arrays):
    safetensors.numpy.save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, path)
    return path


def read(path):
    return safetensors.numpy.load_file(path)


def peft(folder, arrays, **settings):
    """A folder of PEFT."""
    folder.mkdir(exist_ok=True)
    tensors = {f"base_model.model.{name}": array for name, array in arrays.items()}
    save(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3.0 * RANK, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


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
    arrays, laws = {"embedder/mm_soft_embedding_norm/scale": draw(WIDTH)}, {}
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


def peft_update(factors, config, module, x):
    """As PEFT computes it."""
    A, B = (factors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    pattern = "^" + module.replace(".", r"\.")
    rank = config["rank_pattern"].get(pattern, config["r"])
    alpha = config["alpha_pattern"].get(pattern, config["lora_alpha"])
    assert len(A) == rank and module in config["target_modules"]
    return alpha / rank * (x @ A.T @ B.T)


# --- the other projects, whose layers have two matrices or a kernel


def linear(name, base, parts="", *, inputs=(WIDTH,), outputs=(HIDDEN,), torch=False, seed=0):
    """Two factors and the weight, and the update of the weight without the scale."""
    a, b = draw(*inputs, RANK, seed=seed), draw(RANK, *outputs, seed=seed + 1)
    update = np.tensordot(a, b, 1)
    weight = draw(*update.shape, seed=seed + 2)
    if torch:
        a, b = a.T, b.T
        update, weight = (update, weight) if torch == "table" else (update.T, weight.T)
    names = map(name.format, parts or ("AB" if torch else "ab"))
    return {**dict(zip(names, (a, b), strict=True)), base: weight}, {base: update}


def core():
    """kohya's kernel with a core, in half precision, which cannot hold the products."""
    sizes = {"down": (2, 3, 1, 1), "mid": (2, 2, 2, 1), "up": (5, 2, 1, 1)}
    parts = {name: 30 * draw(*size, dtype=np.float16) for name, size in sizes.items()}
    arrays = {f"lora_unet_conv.lora_{name}.weight": x for name, x in parts.items()}
    update = np.einsum("sicd,rsxy,orab->oixy", *(x.astype(np.float32) for x in parts.values()))
    return {**arrays, "conv.weight": draw(5, 3, 2, 1)}, {"conv.weight": update}


# Projects that write in the format of another.
FORMATS = dict.fromkeys(("Tunix", "Tunix, out of heads"), "Qwix")
FORMATS |= {"MaxText on Linen": "MaxText", "KerasHub, heads first": "Keras"}
FORMATS |= dict.fromkeys(("Levanter", "diffusers"), "PEFT")
Q = "model.layers.0.q_proj"
DOWN_UP = ("down", "up")
RENAMED = linear("layers.0.lora_{}", "layers.1.kernel")
PAIRS = {
    "Qwix": (linear("layers/0/q_proj/kernel_lora_{}", "layers/0/q_proj/kernel"),
             {"alpha": 6.0}, 3.0, "layers.0.q_proj"),
    "Tunix": (linear("q_proj/w_lora_{}", "q_proj/w", outputs=(HEADS, SIZE)),
              {"alpha": 6.0}, 3.0, "q_proj"),
    "Tunix, out of heads": (linear("o_proj/w_lora_{}", "o_proj/w", inputs=(HEADS, SIZE)),
                            {"alpha": 6.0}, 3.0, "o_proj"),
    "MaxText on Linen": (linear("params/query/lora_{}/kernel", "params/query/kernel"),
                         {"alpha": 6.0, "rename": {"^params/": ""}}, 3.0, "query"),
    "EasyDeL": (linear(f"{Q}.lora_{{}}", f"{Q}.base_module.kernel"), {}, 1.0, Q),
    "EasyDeL, renamed": ((RENAMED[0] | {"layers.0.kernel": draw(WIDTH, HIDDEN)}, RENAMED[1]),
                         {"rename": {"^layers/0$": "layers/1"}}, 1.0, "layers.1"),
    # KerasHub numbers the layers, so their names must be given.
    "KerasHub, heads first": (
        linear("lora/3/vars/lora_kernel_{}", "layers/query/vars/0", inputs=(HEADS, WIDTH),
               outputs=(SIZE,)),
        {"rename": {"^lora/3": "layers/query"}}, 1.0, "layers.query",
    ),
    "Keras, heads": (linear("query/lora_kernel_{}", "query/kernel", inputs=(WIDTH, HEADS)),
                     {}, 1.0, "query"),
    "Keras, a kernel": (linear("conv/lora_kernel_{}", "conv/kernel", inputs=(2, 3, 4)),
                        {"alpha": 6.0}, 3.0, "conv"),
    "Keras, a table": (linear("embed/lora_embeddings_{}", "embed/embeddings", inputs=(7,)),
                       {}, 1.0, "embed"),
    "gemma, a dense layer": (linear("vision/dense/lora/{}", "vision/dense/kernel"),
                             {}, 1.0, "vision.dense"),
    "Levanter": (linear("base_model.model.h.0.c.lora_{}.weight", "h.0.c.weight", torch=True),
                 {"alpha": 6.0}, 3.0, "h.0.c"),
    "PEFT, a table": (linear("base_model.model.wte.lora_embedding_{}", "wte.weight", torch="table"),
                      {"alpha": 6.0, "tied": False}, 3.0, "wte"),
    "diffusers": (linear("unet.attn.to_q.lora_{}.weight", "unet.attn.to_q.weight", torch=True),
                  {"prefix": "unet."}, 1.0, "attn.to_q"),
    "diffusers, formerly": (
        linear("unet.a.processor.to_out_lora.{}.weight", "a.to_out.0.weight", DOWN_UP, torch=True),
        {"prefix": "unet"}, 1.0, "a.to_out.0",
    ),
    "kohya": (
        linear("lora_unet_attn_to_q.lora_{}.weight", "attn.to_q.weight", DOWN_UP, torch=True),
        {"prefix": "lora_unet_", "rename": {"^attn_to_q$": "attn/to_q"}}, 1.0, "attn.to_q",
    ),
    "kohya, a core": (core(), {"prefix": "lora_unet_"}, 1.0, "conv"),
}  # fmt: skip


@pytest.mark.parametrize("project", PAIRS)
def test_each_project_is_merged_and_converted(project, tmp_path):
    (arrays, updates), options, scale, module = PAIRS[project]
    source = save(tmp_path / "lora.safetensors", {n: x for n, x in arrays.items() if is_lora(n)})
    weights = {name: array for name, array in arrays.items() if not is_lora(name)}
    base = save(tmp_path / "base.safetensors", weights)
    done = convert_lora(source, tmp_path / "merged.safetensors", to="merged", base=base,
                        verify=True, **options)  # fmt: skip
    assert done.difference == 0 and done.sources == [FORMATS.get(project, project.split(",")[0])]
    for name, array in read(tmp_path / "merged.safetensors").items():
        assert np.array_equal(array, weights[name] + scale * updates.get(name, 0))
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
    convert_lora(tmp_path / "peft", tmp_path / "again.safetensors", to="merged", base=theirs,
                 tied=False)  # fmt: skip
    assert np.array_equal(read(tmp_path / "again.safetensors")[f"{module}.weight"], scale * matrix)


def test_qwix_has_one_axis_for_all_inputs_of_a_weight(tmp_path):
    a, b, kernel = draw(6, RANK), draw(RANK, 5), draw(2, 3, 5)
    arrays = {"kernel_lora_a": a, "kernel_lora_b": b, "kernel": kernel}
    source = save(tmp_path / "lora.safetensors", arrays)
    convert_lora(source, tmp_path / "merged.safetensors", to="merged", alpha=2.0 * RANK)
    merged = read(tmp_path / "merged.safetensors")["kernel"]
    assert np.array_equal(merged, kernel + 2 * (a @ b).reshape(2, 3, 5))
    source = save(tmp_path / "other.safetensors", {**arrays, "kernel": draw(3, 2, 5).T})
    with pytest.raises(PeftFormatError, match=r"kernel has the shape \(5, 2, 3\)"):
        convert_lora(source, tmp_path / "out", to="merged", alpha=2.0)


def torch_matrix(project, update):
    """The update as Torch has it."""
    if project.split(",")[0] in ("Levanter", "diffusers", "kohya") or "table" in project:
        return update
    if "kernel" in project:
        return np.moveaxis(update, (-1, -2), (0, 1))
    if "Keras" in project and "heads" in project:  # (heads, in, size) or (in, heads, size)
        first = 1 if "first" in project else 0
        return np.moveaxis(update, first, -1).reshape(-1, WIDTH)
    return update.reshape(-1, HIDDEN if "out of heads" in project else np.prod(update.shape[1:])).T


def stacked(axis):
    """The arrays of three layers, and the update of their weight."""
    names = "layers/up/kernel_lora_{}", "layers/up/kernel"
    blocks = [linear(*names, seed=10 * layer, outputs=(2, HIDDEN)) for layer in range(3)]
    arrays = {name: np.stack([block[0][name] for block in blocks], axis) for name in blocks[0][0]}
    return arrays, np.stack([block[1][names[1]] for block in blocks], axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_become_modules(axis, tmp_path):
    arrays, update = stacked(axis)
    source = save(tmp_path / "lora.safetensors", arrays)
    options = {"alpha": 4.0, "stack_axis": axis}
    rename = {r"^layers/up\[(\d)\]$": r"layers/\1/up"}
    convert_lora(source, tmp_path / "m.safetensors", to="merged", **options)
    merged = read(tmp_path / "m.safetensors")["layers/up/kernel"]
    assert np.array_equal(merged, arrays["layers/up/kernel"] + 2 * update)
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
        ({f"{Q}.lora_a": None}, f"{Q.replace('.', '/')}: its factor A is missing"),
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
            "alpha is not in the arrays(.|\n)*--alpha",
        ),
        ({"y.alpha": np.array(3.0)}, "y/alpha: no factors are beside it"),
        ({f"{Q}.alpha": draw(2)}, r"q_proj: alpha has the shape \(2,\)"),
        ({f"{Q}.lora_a": draw(WIDTH, 0), f"{Q}.lora_b": draw(0, HIDDEN)}, "rank r > 0"),
        ({f"{Q}.lora_b": np.full((RANK, HIDDEN), np.nan)}, "proj: NaN or infinity in its array B"),
        ({**core()[0], "lora_unet_conv.lora_mid.weight": draw(3, 3, 1, 1)}, "conv: lora_mid has"),
        (
            {f"{Q}.lora_a": np.full((9, RANK), 1e18), f"{Q}.lora_b": np.full((RANK, 5), 5e17),
             f"{Q}.base_module.kernel": np.full((9, 5), 3.389e38, jnp.bfloat16)},
            f"{Q}.base_module.kernel has NaN or infinity in bfloat16",
        ),
    ],
)  # fmt: skip
def test_bad_arrays_are_named(change, reason, tmp_path):
    arrays = {name: x for name, x in {**CASE, **change}.items() if x is not None}
    source = save(tmp_path / "lora.safetensors", arrays)
    with pytest.raises((PeftFormatError, SelectionError), match=reason):
        convert_lora(source, tmp_path / "out.safetensors", to="merged")
    assert [*tmp_path.iterdir()] == [source]


def test_bad_calls_and_sources_are_refused(tmp_path):
    def write(name, arrays):
        return save(tmp_path / f"{name}.safetensors", arrays)

    source, out = write("lora", CASE), tmp_path / "out"
    kernel = {f"{Q}.base_module.kernel": draw(WIDTH, HIDDEN)}
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    (tmp_path / "twice").mkdir()
    for number in range(2):
        write(f"twice/{number}", CASE)
    for reason, options in {
        "peft, merged, safetensors, orbax": {"to": "torch"},
        "exists": {"out": source},
        "alpha=3.0, but the scales of all LoRAs are known": {"alpha": 3.0},
        "alpha=2": {"source": peft(tmp_path / "peft", LINEAR), "alpha": 2.0},
        "nothing' cannot be read": {"source": tmp_path / "nothing"},
        r"bad\.safetensors": {"source": tmp_path / "bad.safetensors"},
        "no arrays of LoRA": {"source": write("none", {"w": draw(2)})},
        r"attn_vec_einsum: openpi(.|\n)*LoRAConfig": {"source": write("pi", openpi(rank=3)[0])},
        "underscores": {"source": write("kohya", PAIRS["kohya"][0][0]), "rename": {"^x": ""}},
        "Two files of the folder": {"source": tmp_path / "twice"},
        r"other\.safetensors' has none of these modules": {"base": write("other", kernel)},
        r"head\.weight: it is not part of a LoRA": {
            "to": "merged", "base": source, "source": write("x", {**CASE, "head.weight": draw(2)}),
        },
        "rename=.*nomatch.* fits no": {"rename": {"^nomatch": "x"}},
        "transposed='nomatch' fits no": {"transposed": "nomatch"},
        "stack_axis=0 fits no": {"stack_axis": 0},
        "one fan_in_fan_out": {"source": write("gemma", gemma()[0]), "transposed": "q_proj"},
    }.items():  # fmt: skip
        with pytest.raises((PeftFormatError, SelectionError), match=reason):
            convert_lora(**{"source": source, "out": out, "to": "peft", **options})


LINEAR = {"q.lora_A.weight": draw(RANK, 4), "q.lora_B.weight": draw(7, RANK)}
E = "embed_tokens.lora_embedding_"
TABLE = {f"{E}A": draw(RANK, 7), f"{E}B": draw(4, RANK)}
HEAD = {"lm_head.lora_A.weight": draw(4, RANK).T, "lm_head.lora_B.weight": draw(RANK, 7).T}
BOTH, TIED = TABLE | HEAD, {"ensure_weight_tying": True, "target_modules": ["lm_head"]}


@pytest.mark.parametrize(
    ("arrays", "settings", "scale"),
    [
        (LINEAR, {"use_rslora": True, "lora_alpha": 3.0}, 3 / RANK**0.5),
        (LINEAR, {"rank_pattern": {"q": RANK}, "r": 64, "lora_alpha": 2.0}, 2 / RANK),
        (BOTH, TIED, 3.0),
        (LINEAR, {"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16'"),
        (LINEAR, {"init_lora_weights": "OLoRA"}, "'OLoRA'"),
        (LINEAR, {"target_parameters": ["q"]}, r"'target_parameters': \['q'\]"),
        (LINEAR, {"use_dora": True}, "'use_dora': True"),
        (LINEAR, {"r": 64}, "q: its rank is 2, but 64 in its configuration"),
        (LINEAR, {"lora_alpha": 0}, "q: its alpha is 0"),
        (TABLE, {}, r"embed_tokens: it changes lookups alone(.|\n)*--untied"),
        (BOTH, {}, "lm_head: the base must have one array"),
        (BOTH, TIED | {"alpha_pattern": {"lm_head": 1}}, "lm_head: the base must have one array"),
    ],
)
def test_settings_of_peft_are_followed_or_refused(arrays, settings, scale, tmp_path):
    source, out = peft(tmp_path / "peft", arrays, **settings), tmp_path / "out.safetensors"
    weights = {"q.weight": draw(7, 4), "embed_tokens.weight": draw(7, 4)}
    base = save(tmp_path / "base.safetensors", weights)
    if isinstance(scale, str):
        with pytest.raises(PeftFormatError, match=scale):
            convert_lora(source, out, to="merged", base=base)
        return
    convert_lora(source, out, to="merged", base=base, verify=True)
    A, B, *_ = arrays.values()
    changed, update = ("q", B @ A) if arrays is LINEAR else ("embed_tokens", (B @ A).T)
    for name, array in read(out).items():
        wanted = scale * update if name == f"{changed}.weight" else 0
        assert np.allclose(array, weights[name] + wanted, atol=1e-5)


def test_a_flag_or_names_tell_the_transposed_layers_of_gpt2(tmp_path):
    factors, weights, merged = {}, {}, {}
    for name, *sizes in (("c_attn", 4, 12), ("c_proj", 4, 4), ("wte", 11, 4), ("lm_head", 4, 11)):
        kind = True if name == "lm_head" else "table"
        end = ".lora_embedding_{}" if name == "wte" else ".lora_{}.weight"
        sizes = {"inputs": sizes[:1], "outputs": sizes[1:], "torch": kind}
        arrays, updates = linear(name + end, f"{name}.weight", **sizes)
        factors |= {n: x for n, x in arrays.items() if is_lora(n)}
        weights[f"{name}.weight"] = arrays[f"{name}.weight"]
        merged |= {n: weights[n] + 3 * update for n, update in updates.items()}
    base, again = save(tmp_path / "base.safetensors", weights), tmp_path / "again"
    flagged = peft(tmp_path / "flagged", factors, fan_in_fan_out=True)
    convert_lora(flagged, again, to="peft", base=base, verify=True)
    plain = peft(tmp_path / "plain", factors)
    for source, transposed in ((flagged, None), (again, None), (plain, "^c_")):
        out = tmp_path / f"{source.name}.safetensors"
        convert_lora(source, out, to="merged", base=base, transposed=transposed, verify=True)
        assert all(np.array_equal(array, merged[name]) for name, array in read(out).items())
    # A square layer that is not transposed, in spite of the flag.
    square, update = linear("s.lora_{}.weight", "s.weight", inputs=(4,), outputs=(4,), torch=True)
    base = save(base, weights | {"s.weight": (weight := square.pop("s.weight"))})
    source = peft(tmp_path / "s", factors | square, fan_in_fan_out=True)
    convert_lora(
        source, out := tmp_path / "s.safetensors", to="merged", base=base, transposed="^c_"
    )
    assert np.array_equal(read(out)["s.weight"], weight + 3 * update["s.weight"])


def test_published_variants_of_openpi_need_no_alpha(tmp_path):
    arrays, _ = openpi(rank=16)
    source = save(tmp_path / "openpi.safetensors", arrays)
    with pytest.warns(JnoLoraWarning, match="LoRAs are scaled by 1"):
        done = convert_lora(source, tmp_path / "peft", to="peft")
    assert {scale for _, scale in done.modules.values()} == {1.0}


def test_half_precision_is_rounded_once(tmp_path, monkeypatch):
    arrays, _ = linear("q.lora_{}", "q.kernel")
    arrays = {name: (array / 7).astype(jnp.bfloat16) for name, array in arrays.items()}
    source = save(tmp_path / "lora.safetensors", arrays)
    done = convert_lora(source, tmp_path / "m.safetensors", to="merged", verify=True)
    a, b, weight = (np.asarray(x, np.float32) for x in arrays.values())
    assert np.array_equal(read(tmp_path / "m.safetensors")["q.kernel"],
                          (weight + a @ b).astype(jnp.bfloat16))  # fmt: skip
    assert 0 < done.difference < 0.02
    monkeypatch.setattr(_merge.Merge, "merged", lambda self, name: np.array(self.weights[name]))
    small = {**arrays, "q.lora_a": arrays["q.lora_a"] / 512}  # less than eps times the largest
    with pytest.raises(PeftFormatError, match="written with numbers"):
        convert_lora(save(source, small), tmp_path / "n.safetensors", to="merged", verify=True)


@pytest.mark.parametrize("times", [1, 2])
def test_a_folder_is_merged_file_by_file_and_resumes(times, tmp_path, monkeypatch):
    base, parts, updates = tmp_path / "base", {}, {}
    base.mkdir()
    for number in range(3):
        name = f"layers.{number}.q"
        parts[number], update = linear(name + ".lora_{}", f"{name}.kernel", seed=number)
        updates |= update
        weights = {n: x for n, x in parts[number].items() if not is_lora(n)}
        save(base / f"model-{number}.safetensors", {**weights, f"norm.{number}": draw(4)})
    (base / "config.json").write_text("{}")
    factors = {n: x for part in parts.values() for n, x in part.items() if is_lora(n)}
    source, out = save(tmp_path / "lora.safetensors", factors), tmp_path / "out"
    written, stop, wrong = [], [True], np.float32(0)

    def write(path, arrays, make, real=_merge.write_safetensors):
        if stop and len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, arrays, lambda name: make(name) + wrong)

    monkeypatch.setattr(_merge, "write_safetensors", write)
    with pytest.raises(KeyboardInterrupt):
        convert_lora(source, out, to="merged", base=base)
    assert not out.exists() and written == ["model-0.safetensors", "model-1.safetensors"]
    if times == 2:  # other factors in the same file
        save(source, {name: 2 * x for name, x in factors.items()})
    stop.clear()
    done = convert_lora(source, out, to="merged", base=base, verify=True)
    assert len(written) == (3 if times == 1 else 5) and done.difference == 0
    for number, (name, update) in enumerate(updates.items()):
        merged = read(out / f"model-{number}.safetensors")[name]
        assert np.array_equal(merged, parts[number][name] + times**2 * update)
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in base.iterdir()} | {"adapter_proof.safetensors"}
    wrong += np.float32(0.01)
    with pytest.raises(PeftFormatError, match=r"layers\.0\.q\.kernel was written with numbers"):
        convert_lora(source, tmp_path / "wrong", to="merged", base=base, verify=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora.safetensors", "out"]


# --- random trees


@st.composite
def trees(draw_value):
    """Arrays of a project, with random names, sizes and numbers, and the options to read them."""
    project = draw_value(st.sampled_from(["Qwix", "EasyDeL", "gemma", "PEFT"]))
    size, rank = st.integers(1, 4), draw_value(st.integers(1, 3))
    names = draw_value(st.lists(st.from_regex(r"[a-k]{1,3}(/[a-k0-9]{1,3}){1,2}", fullmatch=True),
                                min_size=1, max_size=4, unique=True))  # fmt: skip
    ends = {"Qwix": "/w_lora_{}", "EasyDeL": "/lora_{}", "gemma": "/lora/{}"}
    ends["PEFT"] = "/lora_{}/weight"
    arrays, updates = {}, {}
    numbers = np.random.default_rng(draw_value(st.integers(0, 99)))
    for name in names:
        inputs, outputs = draw_value(size), draw_value(size)
        sizes = (inputs, rank), (rank, outputs)
        a, b = (numbers.normal(size=x).astype(np.float32) for x in sizes)
        parts = {"A": a.T, "B": b.T} if project == "PEFT" else {"a": a, "b": b}
        arrays |= {name + ends[project].format(part): array for part, array in parts.items()}
        updates[name.replace("/", ".")] = (3 / rank if project == "Qwix" else 1) * (a @ b).T
    return arrays, updates, {"alpha": 3.0} if project == "Qwix" else {}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(tree=trees())
def test_random_trees_round_trip_without_a_difference(tree, tmp_path_factory):
    arrays, updates, options = tree
    folder = tmp_path_factory.mktemp("tree")
    source = save(folder / "source.safetensors", arrays)
    there = convert_lora(source, folder / "peft", to="peft", verify=True, **options)
    out = folder / "again.safetensors"
    again = convert_lora(folder / "peft", out, to="safetensors", verify=True)
    assert there.difference == again.difference == 0 and not there.left + again.left
    assert there.modules.keys() == again.modules.keys() == updates.keys()
    for name, update in updates.items():
        A, B, alpha = (
            read(out)[f"{name}.{x}"] for x in ("lora_A.weight", "lora_B.weight", "alpha")
        )
        assert np.allclose(alpha / len(A) * (B @ A), update, atol=1e-5)


# --- the command


def test_the_command_says_what_it_did(tmp_path):
    source = save(tmp_path / "lora.safetensors", CASE)
    call = [str(source), str(tmp_path / "out"), "--to", "peft", "--verify", "--rename", "^model/="]
    result = CliRunner().invoke(convert, call)
    assert result.exit_code == 0, result.output
    facts = "1 modules of EasyDeL", "layers.0.q_proj", "1 arrays are not", "Largest difference"
    assert all(fact in result.output for fact in (*facts, f"{Q}.base_module.kernel"))
    assert {*os.listdir(tmp_path / "out")} == {"adapter_config.json", "adapter_model.safetensors"}
    result = CliRunner().invoke(convert, [*call[:-1], "no sign"])
    assert result.exit_code == 2 and "no '='" in result.output


def test_a_state_with_axes_of_its_own_is_converted_first():
    arrays, _ = openpi(rank=16)
    with pytest.raises(PeftFormatError, match="q_einsum: it has the axes of openpi"):
        load_lora_state({}, arrays, prefix="params")


@pytest.mark.parametrize(("name", "alpha"), [("q.lora_{}", None), ("q/lora_kernel_{}", 6.0)])
def test_layers_of_nnx_and_of_keras_are_read_into_a_model(name, alpha):
    a, b = draw(WIDTH, RANK), draw(RANK, HIDDEN)
    model = {"q": eqx.nn.Linear(WIDTH, HIDDEN, key=jax.random.key(0))}
    layer = load_lora_state(model, {name.format("a"): a, name.format("b"): b}, alpha=alpha)["q"]
    assert layer.alpha / layer.rank == (alpha or RANK) / RANK
    assert np.array_equal(layer.lora_B @ layer.lora_A, (a @ b).T)


def test_a_merge_on_top_of_a_merge_is_noticed(tmp_path):
    make = functools.partial(eqx.nn.Linear, 4, 4, use_bias=False)
    layers = {"layers": [make(key=jax.random.key(i)) for i in (0, 1)]}
    net = Net(layers).lora(rank=2)
    net.update(jax.tree.map(lambda x: x + 0.1, net.partition()[0]))
    save_peft(net, tmp_path / "adapter")
    weights = {f"layers.{i}.weight": np.asarray(x.weight) for i, x in enumerate(layers["layers"])}
    safetensors.numpy.save_file(weights, tmp_path / "base.safetensors")
    source, once = tmp_path / "adapter", tmp_path / "once.safetensors"
    convert_lora(source, once, to="merged", base=tmp_path / "base.safetensors", verify=True)
    with pytest.warns(match=r"another base(.|\n)*layers.0\n(.|\n)*before any merge"):
        convert_lora(source, tmp_path / "twice.safetensors", to="merged", base=once, verify=True)
    # A LoRA that was extracted knows its base, too.
    extract_peft(tmp_path / "base.safetensors", once, tmp_path / "extracted", rank=2)
    load_peft(layers, tmp_path / "extracted")
    with pytest.warns(match="another base"):
        load_peft(net.merge().module, tmp_path / "extracted")
