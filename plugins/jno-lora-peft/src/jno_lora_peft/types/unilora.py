"""UniLoRA: factors whose entries are taken from one vector for all layers."""

from ._type import Converted, MisfitError, Module, Setting, Type


def _read(m: Module) -> Converted:
    theta = m.shared.get("base_model.unilora_theta_d")
    outputs, inputs = m.layout.matrix
    shapes = {"A": (m.rank, inputs), "B": (outputs, m.rank)}
    if theta is None:
        raise MisfitError("the vector that all layers share is not in the file")
    m.check({f"unilora_{kind}_{n}": s for kind in ("indices", "scales") for n, s in shapes.items()})
    A, B = (
        theta[m.tensors[f"unilora_indices_{n}"].astype(int)] * m.tensors[f"unilora_scales_{n}"]
        for n in shapes
    )
    return m.low_rank((A, B))


UNILORA = Type(
    "UNILORA",
    held="LoRA, its factors put together from the shared vector",
    tensors="unilora_(?:indices|scales)_[AB]",
    reader=_read,
    layers=None,
    rank=Setting("r", 4),
    shared=r"base_model\.unilora_theta_d",
    settings="theta_d_length proj_seed unilora_dropout init_theta_d_bound",
    only={
        "save_indices": (
            True,
            "which entry of the shared vector stands where is not in the file, and only Torch "
            "draws the same again: save it in PEFT with save_indices=True",
        )
    },
)
