"""Files of the rarer types whose tensors or settings do not fit: the error says which, and why."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal, write_files

from jno.lora import PeftFormatError, merge_lora
from jno.lora.peft import load_peft

LINEAR = eqx.nn.Linear(6, 4, key=jax.random.key(0))
EMBEDDING = eqx.nn.Embedding(5, 4, key=jax.random.key(1))

PAIR = {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2)}
TINY = {"tinylora_A": (2, 6), "tinylora_B": (4, 2), "tinylora_P": (3, 2, 2)}
RAND = {"randlora_lambda": (2, 2), "randlora_gamma": (2, 4)}
BASES = {"A": (2, 1, 6), "B": (6, 2, 2)}
FROD = {"frod_lambda_l": (6,), "frod_lambda_s_values": (2,)}
GRALORA = {"gralora_A": (2, 3, 4), "gralora_B": (2, 4, 2)}
TOP = {
    "vblora_logits_A_topk_weights": (1, 3, 1),
    "vblora_logits_A_topk_indices": (1, 3, 2),
    "vblora_logits_B_topk_weights": (2, 1, 1),
    "vblora_logits_B_topk_indices": (2, 1, 2),
}
BANK = {"base_model.vblora_vector_bank": (5, 2)}


def bases(**shapes):
    return {f"base_model.randlora_{name}": shape for name, shape in (BASES | shapes).items()}


def frod(V=(6, 6), size=(2,)):
    shapes = {"V": V, "s_indices": (2, 2), "s_size": size}
    return {f"base_model.frod_{name}.fc": shape for name, shape in shapes.items()}


def tensors_of(parts, shared):
    """Tensors of these shapes: indices are ones, the others random."""
    shapes = {f"{PREFIX}fc.{name}": shape for name, shape in parts.items()} | shared
    return {
        name: np.ones(shape, np.int32) if "indices" in name or "size" in name else normal(*shape)
        for name, shape in shapes.items()
    }


def misfit(kind, parts, reason, shared=None, **config):
    return pytest.param(kind, parts, shared or {}, config, reason, id=f"{kind}: {reason}")


@pytest.mark.parametrize(
    ("kind", "parts", "shared", "config", "reason"),
    [
        misfit("TINYLORA", {"tinylora_A": (2, 6), "tinylora_B": (4, 2)}, "save_projection=True"),
        misfit("TINYLORA", TINY, "which of the trained vectors is its own", r=2, u=3),
        misfit(
            "TINYLORA",
            TINY,
            "its trained vector is not in the file",
            {"base_model.tinylora_v.0": (2,)},
            r=2,
            u=3,
        ),
        misfit("RANDLORA", RAND, "save_projection=True", r=2),
        misfit("RANDLORA", RAND, "do not have rank 2", bases(A=(3, 1, 6)), r=2),
        misfit("RANDLORA", RAND, "too small for the layer", bases(B=(5, 2, 2)), r=2),
        misfit(
            "RANDLORA",
            {**RAND, "randlora_gamma": (2, 3)},
            r"randlora_gamma: expected shape \(2, 4\)",
            bases(),
            r=2,
        ),
        misfit("VBLORA", TOP, "the bank of vectors is missing", r=1),
        misfit("VBLORA", TOP, "`topk` is not a number of them", BANK, r=1, topk=6),
        misfit(
            "VBLORA",
            TOP,
            "vectors of length 4 do not divide",
            {"base_model.vblora_vector_bank": (5, 4)},
            r=1,
        ),
        misfit(
            "SUPERTUNING",
            {"supertuning_values": (3,), "supertuning_lora_A.weight": (2, 6)},
            "supertuning_lora_B.weight: missing",
            r=2,
        ),
        misfit("WAVEFT", {"waveft_spectrum": (3,)}, "'haar'", n_frequency=3, wavelet_family="haar"),
        misfit("MISS", {"miss_block": (1, 3, 3)}, "do not divide", r=3, init_weights="bat"),
        misfit("MISS", {"miss_block": (2, 3)}, "does not fit", r=2, init_weights="mini", mini_r=3),
        misfit("GRALORA", GRALORA, "gralora_k is 3, and must divide 4, 6 and 4", r=4, gralora_k=3),
        misfit(
            "GRALORA", GRALORA, "gralora_A_general.weight: missing", r=4, gralora_k=2, hybrid_r=1
        ),
        misfit("OFT", {"oft_R.weight": (1, 10)}, "blocks are of 5 inputs, and the layer has 6"),
        misfit("BOFT", {"boft_R": (1, 1, 4, 4), "boft_s": (4, 1)}, "blocks are of 4 inputs"),
        misfit("BOFT", {"boft_s": (4, 1)}, "boft_R: missing"),
        misfit("HRA", {"hra_u": (6, 3)}, "rank 3 is odd, and apply_GS", r=3, apply_GS=True),
        misfit(
            "ROAD",
            dict.fromkeys(("road_theta", "road_alpha"), (2,)),
            "group_size 3 do not fit 4 outputs",
            group_size=3,
        ),
        misfit("DEFT", {"deft_P": (4, 2)}, "is 'lu'", r=2, decomposition_method="lu"),
        misfit("FROD", FROD, "save_projection=True"),
        misfit("FROD", FROD, r"the shared matrix is \(5, 5\)", frod(V=(5, 5))),
        misfit("GLORA", {"glora_A.X": (5, 5)}, r"glora_A: it does not make an array \(4, 6\)"),
        misfit(
            "OSF",
            {"osf_svd_params.U_low": (4, 4), "osf_svd_params.S_low": (4,)}
            | {"osf_svd_params.V_low": (4, 6)},
            "it trains 4 of the 4 triplets",
        ),
        misfit("LORA", PAIR, "of a scale above 0", lora_alpha=-1, init_lora_weights="pissa", r=2),
        misfit(
            "LORA",
            {**PAIR, "lora_magnitude_vector": (4,)},
            "on linear layers",
            init_lora_weights="pissa",
            use_dora=True,
            r=2,
        ),
    ],
)
def test_it_is_told_what_does_not_fit(kind, parts, shared, config, reason, tmp_path):
    folder = write_files(tmp_path, tensors_of(parts, shared), peft_type=kind, **config)
    with pytest.raises(PeftFormatError, match=reason):
        load_peft({"fc": LINEAR}, folder)


def test_chosen_vectors_must_be_in_the_bank(tmp_path):
    tensors = tensors_of(TOP, BANK)
    for name in ("A", "B"):
        tensors[f"{PREFIX}fc.vblora_logits_{name}_topk_indices"][:] = 4
    write_files(tmp_path, tensors, peft_type="VBLORA", r=1)
    load_peft({"fc": LINEAR}, tmp_path)
    tensors[f"{PREFIX}fc.vblora_logits_B_topk_indices"] += 1
    write_files(tmp_path, tensors, peft_type="VBLORA", r=1)
    with pytest.raises(PeftFormatError, match="chooses vectors that the bank of 5 lacks"):
        load_peft({"fc": LINEAR}, tmp_path)


def test_entries_of_one_size_leave_the_order_of_the_largest_open(tmp_path):
    layer = eqx.tree_at(lambda m: m.weight, LINEAR, jnp.ones((4, 6)))
    tensors = {f"{PREFIX}fc.supertuning_values": normal(3)}
    folder = write_files(tmp_path, tensors, peft_type="SUPERTUNING")
    with pytest.raises(PeftFormatError, match="leave their order open"):
        load_peft({"fc": layer}, folder)


def test_positions_outside_the_weight_are_refused(tmp_path):
    indices = np.array([[0] * 10, [*range(9), 24]], np.int32)
    tensors = {f"{PREFIX}fc.shira_weight": normal(10), f"{PREFIX}fc.shira_indices": indices}
    folder = write_files(tmp_path, tensors, peft_type="SHIRA", r=1)
    with pytest.raises(PeftFormatError, match="not all within the weight"):
        load_peft({"fc": LINEAR}, folder)


def test_iterations_that_have_not_converged_are_refused(tmp_path):
    tensors = {f"{PREFIX}fc.{name}": normal(*shape) for name, shape in PAIR.items()}
    weight = jnp.eye(4, 6) * jnp.array([4.0, 3.0, 2.9, 1.0])[:, None]
    layer = eqx.tree_at(lambda m: m.weight, LINEAR, weight)
    config = {"init_lora_weights": "pissa_niter_4", "r": 2}
    folder = write_files(tmp_path, tensors, **config)
    with pytest.raises(PeftFormatError, match="finds another part each time"):
        load_peft({"fc": layer}, folder)
    weight = jnp.eye(4, 6) * jnp.array([4.0, 3.0, 0.1, 0.1])[:, None]
    load_peft({"fc": eqx.tree_at(lambda m: m.weight, LINEAR, weight)}, folder)


def test_hira_of_a_large_rank_has_that_of_the_weight(tmp_path):
    A, B = normal(9, 6), normal(4, 9)
    tensors = {f"{PREFIX}fc.hira_A": A, f"{PREFIX}fc.hira_B": B}
    model = load_peft({"fc": LINEAR}, write_files(tmp_path, tensors, peft_type="HIRA", r=9))
    assert model["fc"].rank == 4
    assert np.allclose(merge_lora(model)["fc"].weight, LINEAR.weight * (1 + B @ A), atol=1e-5)


def test_glora_of_factors_and_of_nothing(tmp_path):
    Xd, Xu, E = normal(4, 2), normal(2, 6), normal(4)
    parts = {"glora_A.Xd": Xd, "glora_A.Xu": Xu, "glora_E.X": E, "glora_B.zeros": np.zeros(1)}
    tensors = {f"{PREFIX}fc.{name}": x.astype(np.float32) for name, x in parts.items()}
    folder = write_files(tmp_path, tensors, peft_type="GLORA", r=2)
    merged = merge_lora(load_peft({"fc": LINEAR}, folder)["fc"])
    assert np.allclose(merged.weight, LINEAR.weight * (1 + Xd @ Xu), atol=1e-5)
    assert np.allclose(merged.bias, LINEAR.bias + E, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("fc", "fc"),
        ("blocks.0.fc", "fc"),
        ("mlp.up", "mlp_up"),
        ("attention.output.dense", "attention_output"),
    ],
)
def test_frod_finds_its_shared_matrix_by_the_name_of_the_layer(name, key, tmp_path):
    lengths, values = normal(6), normal(1, seed=1)
    tensors = {f"{PREFIX}{name}.frod_lambda_l": lengths}
    tensors[f"{PREFIX}{name}.frod_lambda_s_values"] = values
    shared = {"V": np.eye(6, dtype=np.float32), "s_indices": np.array([[0], [1]], np.int32)}
    shared["s_size"] = np.array([6, 6], np.int32)
    tensors |= {f"base_model.frod_{what}.{key}": x for what, x in shared.items()}
    model = LINEAR
    for part in reversed(name.split(".")):
        model = [model] if part.isdigit() else {part: model}
    loaded = load_peft(model, write_files(tmp_path, tensors, peft_type="FROD"))
    (weight,) = (x for x in jax.tree.leaves(merge_lora(loaded)) if x.ndim == 2)
    W = np.asarray(LINEAR.weight)
    U = W / np.linalg.norm(W, axis=0)
    middle = np.diag(lengths)
    middle[0, 1] += values[0]
    assert np.allclose(weight, U @ middle, atol=1e-5)


def test_a_layer_of_another_kind_is_refused(tmp_path):
    tensors = {f"{PREFIX}fc.hra_u": normal(5, 2)}
    folder = write_files(tmp_path, tensors, peft_type="HRA", r=2)
    with pytest.raises(PeftFormatError, match="for linear, and this is embedding"):
        load_peft({"fc": EMBEDDING}, folder)
