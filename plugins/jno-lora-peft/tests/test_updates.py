"""Updates of PEFT from other parts than two factors, against NumPy, and parts that do not fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal

from jno.lora import merge_lora
from jno_lora_peft.types.shared import _category

LINEAR = eqx.nn.Linear(6, 4, key=jax.random.key(0))
CONV = eqx.nn.Conv2d(3, 4, (2, 3), key=jax.random.key(1))
CONV1D = eqx.nn.Conv1d(2, 4, 3, key=jax.random.key(4))
GROUPED = eqx.nn.Conv2d(4, 6, 2, groups=2, key=jax.random.key(2))


def named(parts):
    """Tensors of the module `fc`, all different, by their names in the file."""
    shapes = enumerate(parts.items())
    return {f"{PREFIX}fc.{name}": normal(*shape, seed=seed) for seed, (name, shape) in shapes}


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


def lokr_with_core(t2, w1, w2_a, w2_b):
    return np.kron(w1[:, :, None, None], tucker(t2, w2_a, w2_b))


def adalora_parts(r):
    return {"lora_A": (r, 6), "lora_B": (4, r), "lora_E": (r, 1)}


def loha_parts(a, b, core=None):
    cores = {} if core is None else {"hada_t1": core, "hada_t2": core}
    return cores | {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}


ADALORA = {"peft_type": "ADALORA", "init_r": 3}
LOHA = {"peft_type": "LOHA", "alpha": 2}
LOKR = {"peft_type": "LOKR", "r": 2, "alpha": 4}
# By name: the layer, the settings, the scale, the update, and the shapes of its parts.
CASES = {
    "AdaLoRA": (LINEAR, ADALORA | {"lora_alpha": 2}, 2 / 3.00001, adalora, adalora_parts(3)),
    "AdaLoRA without alpha, pruned to one component": (
        *(LINEAR, ADALORA | {"lora_alpha": -1}, 3 / 3.00001, adalora, adalora_parts(1)),
    ),
    "AdaLoRA of alpha 0": (
        *(LINEAR, ADALORA | {"lora_alpha": 0}, 3 / 3.00001, adalora, adalora_parts(3)),
    ),
    "AdaLoRA, wholly pruned": (LINEAR, ADALORA, 1.0, adalora, adalora_parts(0)),
    "LoHa of a large rank": (LINEAR, LOHA | {"r": 3}, 2 / 3, loha, loha_parts((4, 3), (3, 6))),
    "LoHa with cores of one axis": (
        *(CONV1D, LOHA | {"r": 2}, 1.0, lambda *parts: loha_with_cores(*parts)[..., 0]),
        loha_parts((2, 4), (2, 2), (2, 2, 3, 1)),
    ),
    "LoHa with cores": (
        *(CONV, LOHA | {"r": 2}, 1.0, loha_with_cores),
        loha_parts((2, 4), (2, 3), (2, 2, 2, 3)),
    ),
    "LoKr with a core": (
        *(CONV, LOKR, 2.0, lokr_with_core),
        {"lokr_t2": (2, 2, 2, 3), "lokr_w1": (2, 1), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_update_is_the_one_that_the_paper_writes(name, load):
    layer, settings, scale, update, parts = CASES[name]
    tensors = named(parts)
    model = load({"fc": layer}, tensors, **settings)
    expected = scale * update(*(array.astype(np.float64) for array in tensors.values()))
    # Of the size of the factors, since the update is found as a difference of weights.
    bound = 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(update_of(model, layer) - expected).max() < bound


def grouped(tensors):
    A, B = tensors.values()
    groups = ((A[:2, :2], B[:3]), (A[2:, 2:], B[3:]))
    return np.concatenate([np.einsum("or,rixy->oixy", b[:, :, 0, 0], a) for a, b in groups])


def test_a_grouped_convolution_is_held_if_no_input_of_another_group_counts(load, refuse):
    shapes, model = {"lora_A.weight": (4, 4, 2, 2), "lora_B.weight": (6, 2, 1, 1)}, {"fc": GROUPED}
    tensors = named(shapes)
    refuse("its update mixes the 2 groups", model, tensors, r=4, lora_alpha=4)
    A, _ = tensors.values()
    A[:2, 2:], A[2:, :2] = 0, 0
    loaded = load(model, tensors, r=4, lora_alpha=4)
    assert np.allclose(update_of(loaded, GROUPED), grouped(tensors), atol=1e-5)
    A[2:, 2:] = A[:2, :2]  # one for all groups, as the zoo has it
    loaded = load(model, tensors, r=4, lora_alpha=4)
    assert loaded["fc"].rank == 2
    assert np.allclose(update_of(loaded, GROUPED), grouped(tensors), atol=1e-5)
    odd = named({"lora_A.weight": (3, 4, 2, 2), "lora_B.weight": (6, 1, 1, 1)})
    refuse("rank 3 is not a multiple of the 2 groups", model, odd, r=3)
    dora = named({**shapes, "lora_magnitude_vector": (1, 6, 1, 1)})
    refuse("takes no norm of the rows of a kernel", model, dora, r=4, use_dora=True)


def test_hira_of_a_large_rank_has_the_rank_of_the_weight(load):
    tensors = named({"hira_A": (9, 6), "hira_B": (4, 9)})
    A, B = tensors.values()
    model = load({"fc": LINEAR}, tensors, peft_type="HIRA", r=9)
    assert model["fc"].rank == 4
    assert np.allclose(update_of(model, LINEAR), LINEAR.weight * (B @ A), atol=1e-5)


def test_frod_finds_its_shared_matrix_by_the_name_of_the_layer():
    names = ("fc", "blocks.0.fc", "mlp.up", "attention.output.dense")
    assert [*map(_category, names)] == ["fc", "fc", "mlp_up", "attention_output"]


# --- files whose tensors or settings do not fit: the error says which, and why

PAIR = {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2)}
TINY = {"tinylora_A": (2, 6), "tinylora_B": (4, 2), "tinylora_P": (3, 2, 2)}
RAND = {"randlora_lambda": (2, 2), "randlora_gamma": (2, 4)}
BASES = {"base_model.randlora_A": (2, 1, 6), "base_model.randlora_B": (6, 2, 2)}
VERA = {"vera_lambda_b": (4,), "vera_lambda_d": (3,)}
FROD = {"frod_lambda_l": (6,), "frod_lambda_s_values": (2,)}
V = {f"base_model.frod_{n}.fc": s for n, s in {"V": (7, 7), "s_indices": (2, 2)}.items()}
HADA = {"hada_w1_a": (4, 1), "hada_w1_b": (1, 6), "hada_w2_a": (4, 1), "hada_w2_b": (1, 5)}
LARGE_LOKR = {"lokr_w1": (2, 3), "lokr_w2_a": (2, 1), "lokr_w2_b": (1, 2)}
SMALL_LOKR = {"lokr_w1": (2, 3), "lokr_w2_a": (1, 2), "lokr_w2_b": (1, 2), "lokr_t2": (1, 1)}
OSF = {f"osf_svd_params.{n}_low": s for n, s in {"U": (4, 4), "S": (4,), "V": (4, 6)}.items()}
ROAD = dict.fromkeys(("road_theta", "road_alpha"), (2,))
DORA = {**PAIR, "lora_magnitude_vector": (4,)}
BANK = {"base_model.vblora_vector_bank": (5, 2)}
TOP = {
    "vblora_logits_A_topk_weights": (1, 3, 1),
    "vblora_logits_A_topk_indices": (1, 3, 2),
    "vblora_logits_B_topk_weights": (2, 1, 1),
    "vblora_logits_B_topk_indices": (2, 1, 2),
}
# The type, the shapes of its tensors (also of shared tensors), the settings, and the reason.
MISFITS = [
    ("TINYLORA", TINY, {"u": 3}, "which of the trained vectors is its own"),
    ("TINYLORA", TINY | {"base_model.tinylora_v.0": (2,)}, {"u": 3}, r"must be \(3,\) or larger"),
    ("RANDLORA", RAND, {}, "save_projection=True"),
    ("RANDLORA", RAND | BASES | {"base_model.randlora_A": (1, 1, 6)}, {}, r"\(2, 1, 4\) or larger"),
    ("RANDLORA", RAND | BASES | {"base_model.randlora_B": (5, 2, 2)}, {}, r"\(6, 2, 2\) or larger"),
    ("VERA", VERA, {"r": 3}, "save_projection=True"),
    ("VBLORA", TOP, {"r": 1}, r"must be \(2, 1\) or larger, and is None"),
    ("VBLORA", TOP | BANK, {"r": 1, "topk": 6}, r"must be \(6, 1\) or larger, and is \(5, 2\)"),
    ("FROD", FROD, {}, "save_projection=True"),
    ("FROD", FROD | V, {}, r"the shared matrix is \(7, 7\)"),
    ("WAVEFT", {"waveft_spectrum": (3,)}, {"n_frequency": 3, "wavelet_family": "haar"}, "'haar'"),
    ("MISS", {"miss_block": (1, 3, 3)}, {"r": 3, "init_weights": "bat"}, "do not divide"),
    ("MISS", {"miss_block": (2, 3)}, {"init_weights": "mini", "mini_r": 3}, "does not fit"),
    ("OFT", {"oft_R.weight": (1, 10)}, {}, "blocks are of 5 inputs, and the layer has 6"),
    ("BOFT", {"boft_R": (1, 1, 4, 4), "boft_s": (4, 1)}, {}, "blocks are of 4 inputs"),
    ("HRA", {"hra_u": (6, 3)}, {"r": 3, "apply_GS": True}, "rank 3 is odd, and apply_GS"),
    ("ROAD", ROAD, {"group_size": 3}, "group_size 3 do not fit 4 outputs"),
    ("DEFT", {"deft_P": (4, 2)}, {"decomposition_method": "lu"}, "is 'lu'"),
    ("GLORA", {"glora_A.X": (5, 5)}, {}, r"glora_A: it does not make an array \(4, 6\)"),
    ("OSF", OSF, {}, "it trains 4 of the 4 triplets"),
    ("LORA", PAIR, {"lora_alpha": -1, "init_lora_weights": "pissa"}, "of a scale above 0"),
    ("LORA", DORA, {"init_lora_weights": "pissa", "use_dora": True}, "on linear layers"),
    ("LORA", PAIR, {"use_dora": True}, "lora_magnitude_vector: missing"),
    ("LOHA", HADA, {"r": 1}, r"hada_w2_b: expected shape \(1, 6\), got \(1, 5\)"),
    ("LOHA", {"hada_t1": (1, 1, 1, 1), "hada_w1_a": (1, 4)}, {"r": 1}, "hada_t2: missing"),
    ("LOKR", {"lokr_w1": (2, 3), "lokr_w2": (2, 3)}, {}, "do not make"),
    ("LOKR", LARGE_LOKR, {}, "of rank 2 cannot be"),
    ("LOKR", SMALL_LOKR, {"r": 1}, r"lokr_t2: expected \(1, 1, and the kernel\)"),
    ("IA3", {"ia3_l": (4, 1)}, {"feedforward_modules": ["fc"]}, r"expected shape \(1, 6\)"),
]


def tensors_of(shapes):
    """Tensors of these shapes: indices are ones, and all other numbers random."""
    return {
        name if name.startswith("base_model.") else f"{PREFIX}fc.{name}": np.ones(shape, np.int32)
        if "indices" in name
        else normal(*shape)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("kind", "shapes", "settings", "reason"), MISFITS)
def test_it_is_told_what_does_not_fit(kind, shapes, settings, reason, refuse):
    ranks = {"r": 2} if kind in ("TINYLORA", "RANDLORA", "MISS", "DEFT", "LORA", "LOKR") else {}
    refuse(reason, {"fc": LINEAR}, tensors_of(shapes), peft_type=kind, **{**ranks, **settings})


def test_entries_of_one_size_leave_the_order_of_the_largest_open(refuse):
    layer = eqx.tree_at(lambda m: m.weight, LINEAR, jnp.ones((4, 6)))
    tensors = {f"{PREFIX}fc.supertuning_values": normal(3)}
    refuse("leave their order open", {"fc": layer}, tensors, peft_type="SUPERTUNING")


def test_positions_outside_the_weight_are_refused(refuse):
    indices = np.array([[0] * 10, [*range(9), 24]], np.int32)
    tensors = {f"{PREFIX}fc.shira_weight": normal(10), f"{PREFIX}fc.shira_indices": indices}
    refuse("not all within the weight", {"fc": LINEAR}, tensors, peft_type="SHIRA", r=1)


def test_starts_that_rounding_or_chance_decides_are_refused(load, refuse):
    def start(values, name):
        weight = jnp.eye(4, 6) * jnp.asarray(values, jnp.float32)[:, None]
        model = {"fc": eqx.tree_at(lambda m: m.weight, LINEAR, weight)}
        return {"model": model, "tensors": tensors_of(PAIR), "init_lora_weights": name, "r": 2}

    refuse("the singular values 2 and 3 of its weight are so close", **start([1] * 4, "pissa"))
    refuse("the singular values 2 and 3", **start([1] * 4, "pissa_niter_4"))
    refuse("finds another part each time", **start([4, 3, 2.9, 1], "pissa_niter_4"))
    refuse("the first 2 columns of its weight are so close", **start([1, 0, 0, 0], "olora"))
    load(**start([4, 3, 0.1, 0.1], "pissa_niter_4"))


def test_a_layer_of_another_kind_is_refused(refuse):
    embedding = eqx.nn.Embedding(5, 4, key=jax.random.key(1))
    tensors = {f"{PREFIX}fc.hra_u": normal(5, 2)}
    refuse("for linear, not embedding", {"fc": embedding}, tensors, peft_type="HRA", r=2)
