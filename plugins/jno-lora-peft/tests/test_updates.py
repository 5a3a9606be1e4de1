"""The updates of PEFT from other parts than two factors, against NumPy, each as in its paper."""

import equinox as eqx
import jax
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal, write_files

from jno.lora import PeftFormatError, merge_lora
from jno.lora.peft import load_peft

LINEAR = eqx.nn.Linear(6, 4, key=jax.random.key(0))
CONV = eqx.nn.Conv2d(3, 4, (2, 3), key=jax.random.key(1))
CONV1D = eqx.nn.Conv1d(2, 4, 3, key=jax.random.key(4))
GROUPED = eqx.nn.Conv2d(4, 6, 2, groups=2, key=jax.random.key(2))
EMBEDDING = eqx.nn.Embedding(5, 4, key=jax.random.key(3))


def named(parts):
    """Tensors of the module `fc`, all different, by their names in the file."""
    shapes = enumerate(parts.items())
    return {f"{PREFIX}fc.{name}": normal(*shape, seed=seed) for seed, (name, shape) in shapes}


def load(layer, tensors, tmp_path, **config):
    return load_peft({"fc": layer}, write_files(tmp_path, tensors, **config), tied=False)


def update_of(model, layer):
    return np.asarray(merge_lora(model)["fc"].weight) - np.asarray(layer.weight)


def adalora(A, B, E):
    return B @ (E * A)


def loha(w1_a, w1_b, w2_a, w2_b):
    return (w1_a @ w1_b) * (w2_a @ w2_b)


def tucker(core, a, b):
    """`W[o, i, x, y] = sum of core[r, s, x, y] a[r, o] b[s, i]`."""
    return np.einsum("rsxy,ro,si->oixy", core, a, b)


def loha_with_cores(t1, t2, w1_a, w1_b, w2_a, w2_b):
    return tucker(t1, w1_a, w1_b) * tucker(t2, w2_a, w2_b)


def lokr(w1, w2):
    return np.kron(w1, w2)


def lokr_of_kernel(w1, w2):
    return np.kron(w1[:, :, None, None], w2)


def lokr_of_factors(w1_a, w1_b, w2_a, w2_b):
    return np.kron(w1_a @ w1_b, w2_a @ w2_b)


def lokr_with_core(t2, w1, w2_a, w2_b):
    return lokr_of_kernel(w1, tucker(t2, w2_a, w2_b))


# By name: the layer, the configuration with its scale, the update, and the shapes of its parts.
CASES = {
    "AdaLoRA": (
        LINEAR,
        ({"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 2}, 2 / (3 + 1e-5)),
        adalora,
        {"lora_A": (3, 6), "lora_B": (4, 3), "lora_E": (3, 1)},
    ),
    "AdaLoRA without alpha, pruned to one component": (
        LINEAR,
        ({"peft_type": "ADALORA", "init_r": 3, "lora_alpha": -1}, 3 / (3 + 1e-5)),
        adalora,
        {"lora_A": (1, 6), "lora_B": (4, 1), "lora_E": (1, 1)},
    ),
    "AdaLoRA of alpha 0": (
        LINEAR,
        ({"peft_type": "ADALORA", "init_r": 2, "lora_alpha": 0}, 2 / (2 + 1e-5)),
        adalora,
        {"lora_A": (2, 6), "lora_B": (4, 2), "lora_E": (2, 1)},
    ),
    "LoHa of a small rank": (
        LINEAR,
        ({"peft_type": "LOHA", "r": 1, "alpha": 2}, 2.0),
        loha,
        {"hada_w1_a": (4, 1), "hada_w1_b": (1, 6), "hada_w2_a": (4, 1), "hada_w2_b": (1, 6)},
    ),
    "LoHa of a large rank": (
        LINEAR,
        ({"peft_type": "LOHA", "r": 3, "alpha": 2}, 2 / 3),
        loha,
        {"hada_w1_a": (4, 3), "hada_w1_b": (3, 6), "hada_w2_a": (4, 3), "hada_w2_b": (3, 6)},
    ),
    "LoHa with cores of one axis": (
        CONV1D,
        ({"peft_type": "LOHA", "r": 2, "alpha": 1}, 0.5),
        lambda *parts: loha_with_cores(*parts)[..., 0],
        {
            "hada_t1": (2, 2, 3, 1),
            "hada_t2": (2, 2, 3, 1),
            "hada_w1_a": (2, 4),
            "hada_w1_b": (2, 2),
            "hada_w2_a": (2, 4),
            "hada_w2_b": (2, 2),
        },
    ),
    "LoHa with cores": (
        CONV,
        ({"peft_type": "LOHA", "r": 2, "alpha": 1}, 0.5),
        loha_with_cores,
        {
            "hada_t1": (2, 2, 2, 3),
            "hada_t2": (2, 2, 2, 3),
            "hada_w1_a": (2, 4),
            "hada_w1_b": (2, 3),
            "hada_w2_a": (2, 4),
            "hada_w2_b": (2, 3),
        },
    ),
    "LoKr": (
        LINEAR,
        ({"peft_type": "LOKR", "r": 2, "alpha": 4}, 2.0),
        lokr,
        {"lokr_w1": (2, 3), "lokr_w2": (2, 2)},
    ),
    "LoKr of four factors": (
        LINEAR,
        ({"peft_type": "LOKR", "r": 1, "alpha": 4}, 4.0),
        lokr_of_factors,
        {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (2, 1), "lokr_w2_b": (1, 2)},
    ),
    "LoKr of a kernel": (
        CONV,
        ({"peft_type": "LOKR", "r": 2, "alpha": 4}, 2.0),
        lokr_of_kernel,
        {"lokr_w1": (2, 1), "lokr_w2": (2, 3, 2, 3)},
    ),
    "LoKr with a core": (
        CONV,
        ({"peft_type": "LOKR", "r": 2, "alpha": 4}, 2.0),
        lokr_with_core,
        {"lokr_t2": (2, 2, 2, 3), "lokr_w1": (2, 1), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_update_is_the_one_that_the_paper_writes(name, tmp_path):
    layer, (config, scale), update, parts = CASES[name]
    tensors = named(parts)
    model = load(layer, tensors, tmp_path, **config)
    expected = scale * update(*(array.astype(np.float64) for array in tensors.values()))
    # Of the size of the factors, since the update is found as a difference of weights.
    bound = 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(update_of(model, layer) - expected).max() < bound


def test_a_fully_pruned_adalora_layer_has_no_update(tmp_path):
    tensors = named({"lora_A": (0, 6), "lora_B": (4, 0), "lora_E": (0, 1)})
    model = load(LINEAR, tensors, tmp_path, peft_type="ADALORA", init_r=3)
    assert np.array_equal(update_of(model, LINEAR), np.zeros((4, 6)))


def grouped(tensors):
    A, B = tensors.values()
    return np.concatenate(
        [
            np.einsum("or,rixy->oixy", b[:, :, 0, 0], a)
            for a, b in ((A[:2, :2], B[:3]), (A[2:, 2:], B[3:]))
        ]
    )


def test_a_grouped_convolution_is_held_if_no_input_of_another_group_counts(tmp_path):
    tensors = named({"lora_A.weight": (4, 4, 2, 2), "lora_B.weight": (6, 2, 1, 1)})
    with pytest.raises(PeftFormatError, match="its update mixes the 2 groups"):
        load(GROUPED, tensors, tmp_path, r=4, lora_alpha=4)
    A, _ = tensors.values()
    A[:2, 2:], A[2:, :2] = 0, 0
    model = load(GROUPED, tensors, tmp_path, r=4, lora_alpha=4)
    assert np.allclose(update_of(model, GROUPED), grouped(tensors), atol=1e-5)
    A[2:, 2:] = A[:2, :2]  # one for all groups, as the zoo has it
    model = load(GROUPED, tensors, tmp_path, r=4, lora_alpha=4)
    assert model["fc"].rank == 2
    assert np.allclose(update_of(model, GROUPED), grouped(tensors), atol=1e-5)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", ["linear", "convolution", "embedding"])
def test_dora_takes_the_norm_of_each_row(name, use_rslora, tmp_path):
    layer, parts = {
        "linear": (LINEAR, {"lora_magnitude_vector": (4,), "lora_A.weight": (2, 6)}),
        "convolution": (
            CONV,
            {"lora_magnitude_vector": (1, 4, 1, 1), "lora_A.weight": (2, 3, 2, 3)},
        ),
        "embedding": (EMBEDDING, {"lora_magnitude_vector": (4,), "lora_embedding_A": (2, 5)}),
    }[name]
    up = {"linear": ("lora_B.weight", (4, 2)), "convolution": ("lora_B.weight", (4, 2, 1, 1))}
    tensors = named(parts | dict([up.get(name, ("lora_embedding_B", (4, 2)))]))
    model = load(layer, tensors, tmp_path, lora_alpha=3, use_dora=True, use_rslora=use_rslora)
    magnitude, A, B = (array.astype(np.float64) for array in tensors.values())
    scale = 3 / np.sqrt(2) if use_rslora else 3 / 2
    W = np.asarray(layer.weight.T if name == "embedding" else layer.weight, np.float64)
    W = W.reshape(len(W), -1)
    V = W + scale * B.reshape(4, 2) @ A.reshape(2, -1)
    expected = magnitude.reshape(-1, 1) * V / np.linalg.norm(V, axis=1, keepdims=True)
    found = np.asarray(merge_lora(model)["fc"].weight)
    found = found.T if name == "embedding" else found.reshape(4, -1)
    assert np.allclose(found, expected, atol=1e-5)


def test_vera_takes_its_part_of_the_matrices_that_all_layers_share(tmp_path):
    shared = {f"base_model.vera_{n}": normal(*s) for n, s in {"A": (3, 9), "B": (7, 3)}.items()}
    own = named({"vera_lambda_b": (4,), "vera_lambda_d": (3,)})
    model = load(LINEAR, own | shared, tmp_path, peft_type="VERA", r=3)
    (b, d), (A, B) = own.values(), shared.values()
    expected = (b[:, None] * B[:4]) @ (d[:, None] * A[:, :6])
    assert np.allclose(update_of(model, LINEAR), expected, atol=1e-5)
    few = shared | {"base_model.vera_B": normal(3, 3)}
    for tensors, reason in (
        (own, "save_projection=True"),
        (own | few, "too small for the layer"),
        (own | shared | {"base_model.vera_A": normal(2, 9)}, "do not have rank 3"),
    ):
        with pytest.raises(PeftFormatError, match=reason):
            load(LINEAR, tensors, tmp_path, peft_type="VERA", r=3)


@pytest.mark.parametrize(
    ("config", "parts", "reason"),
    [
        ({"peft_type": "ADALORA", "init_r": 2}, {"lora_A": (2, 6)}, "lora_E: missing"),
        (
            {"peft_type": "LOHA", "r": 1},
            {"hada_w1_a": (4, 1), "hada_w1_b": (1, 6), "hada_w2_a": (4, 1), "hada_w2_b": (1, 5)},
            r"hada_w2_b: expected shape \(1, 6\), got \(1, 5\)",
        ),
        (
            {"peft_type": "LOHA", "r": 1},
            {"hada_t1": (1, 1, 1, 1), "hada_w1_a": (1, 4)},
            "hada_t2: missing",
        ),
        ({"peft_type": "LOKR", "r": 2}, {"lokr_w1": (2, 3), "lokr_w2": (2, 3)}, "do not make"),
        ({"peft_type": "LOKR", "r": 2}, {"lokr_w1": (8,), "lokr_w2": (3, 1)}, "do not make"),
        (
            {"peft_type": "LOKR", "r": 2},
            {"lokr_w1": (2, 3), "lokr_w2_a": (2, 1), "lokr_w2_b": (1, 2)},
            "of rank 2 cannot be",
        ),
        (
            {"peft_type": "LOKR", "r": 2},
            {"lokr_w1": (2, 3), "lokr_w2_a": (2, 2), "lokr_w2_b": (2,)},
            "of rank 2 cannot be",
        ),
        (
            {"peft_type": "ADALORA", "init_r": 2, "alpha_pattern": "fc"},
            {"lora_A": (2, 6), "lora_B": (4, 2), "lora_E": (2, 1)},
            "alpha_pattern is 'fc', not",
        ),
        (
            {"peft_type": "LOKR", "r": 1},
            {
                "lokr_w1": (2, 3),
                "lokr_w2_a": (1, 2),
                "lokr_w2_b": (1, 2),
                "lokr_t2": (1, 1),
            },
            r"lokr_t2: expected \(1, 1, and the kernel\)",
        ),
        ({"peft_type": "IA3"}, {"ia3_l": (4,)}, r"ia3_l: expected shape \(4, 1\), got \(4,\)"),
        (
            {"peft_type": "IA3", "feedforward_modules": "f."},
            {"ia3_l": (4, 1)},
            r"ia3_l: expected shape \(1, 6\), got \(4, 1\)",
        ),
        (
            {"peft_type": "IA3", "feedforward_modules": ["fc"]},
            {"ia3_l": (4, 1)},
            r"ia3_l: expected shape \(1, 6\), got \(4, 1\)",
        ),
        (
            {"use_dora": True},
            {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2)},
            "lora_magnitude_vector: missing",
        ),
    ],
)
def test_parts_that_do_not_fit_are_told_by_their_names(config, parts, reason, tmp_path):
    with pytest.raises(PeftFormatError, match=reason):
        load(LINEAR, named(parts), tmp_path, **config)


def test_groups_of_which_peft_has_no_adapter(tmp_path):
    tensors = named({"lora_A.weight": (3, 4, 2, 2), "lora_B.weight": (6, 1, 1, 1)})
    with pytest.raises(PeftFormatError, match="rank 3 is not a multiple of the 2 groups"):
        load(GROUPED, tensors, tmp_path, r=3)
    tensors = named(
        {
            "lora_A.weight": (2, 4, 2, 2),
            "lora_B.weight": (6, 1, 1, 1),
            "lora_magnitude_vector": (1, 6, 1, 1),
        }
    )
    with pytest.raises(PeftFormatError, match="takes no norm of the rows of a kernel with groups"):
        load(GROUPED, tensors, tmp_path, r=2, use_dora=True)


# --- which layers the configuration means


@pytest.mark.parametrize(
    ("config", "targeted"),
    [
        ({"target_modules": "all-linear"}, True),
        ({"target_modules": None}, True),
        ({"target_modules": ["fc"]}, True),
        ({"target_modules": ["c"]}, False),
        ({"target_modules": r".*\.0\.fc"}, True),
        ({"target_modules": r".*\.1\.fc"}, False),
        ({"exclude_modules": r".*\.0\..*"}, False),
        ({"exclude_modules": ["blocks.1.fc"]}, True),
        ({"target_modules": ["fc"], "layers_to_transform": 0}, True),
        ({"target_modules": ["fc"], "layers_to_transform": [1, 2]}, False),
        ({"target_modules": ["fc"], "layers_to_transform": [0], "layers_pattern": "blocks"}, True),
        ({"target_modules": ["fc"], "layers_to_transform": [0], "layers_pattern": ["rows"]}, False),
        ({"modules_to_save": ["blocks"]}, False),
    ],
)
def test_which_modules_are_meant(config, targeted, tmp_path):
    names = ("lora_A.weight", "lora_B.weight")
    shapes = zip(names, ((2, 6), (4, 2)), strict=True)
    tensors = {f"{PREFIX}model.blocks.0.fc.{name}": normal(*shape) for name, shape in shapes}
    folder = write_files(tmp_path, tensors, **config)
    model = {"model": {"blocks": [{"fc": LINEAR}]}}
    if targeted:
        assert type(load_peft(model, folder)["model"]["blocks"][0]["fc"]).__name__ == "LoRALinear"
    else:
        with pytest.raises(PeftFormatError, match="does not target it"):
            load_peft(model, folder)
