"""RandLoRA: random bases that all layers share, scaled by two trained matrices."""

import numpy as np

from .._names import PREFIX
from ._shared import shared_arrays
from ._type import Adapter, Converted, MisfitError, Module, Modules, Setting, Tensors, Type, Written


class RANDLORA(Type):
    """RandLoRA, with the bases of the file."""

    tensors = "randlora_(?:lambda|gamma|A|B)"
    rank = Setting("r", 32)
    alpha = Setting("randlora_alpha", 640)
    shared = r"base_model\.randlora_[AB]"
    settings = "randlora_dropout projection_prng_key save_projection sparse very_sparse"
    bias = "randlora_only"

    def read(self, m: Module) -> Converted:
        r, (smaller, larger) = m.rank, sorted(m.layout.matrix)
        n = -(-smaller // r)
        shapes = {"randlora_lambda": (r, n), "randlora_gamma": (n, smaller)}
        lambdas, gammas = m.take(shapes, ignored=("randlora_A", "randlora_B"))
        A, B = shared_arrays(m, "randlora_A", "randlora_B")
        if A.ndim != 3 or B.ndim != 3 or A.shape[:2] != (r, 1) or B.shape[2] != r:
            raise MisfitError(f"the shared matrices {A.shape} and {B.shape} do not have rank {r}")
        if A.shape[2] < smaller or len(B) < larger or B.shape[1] < n:
            raise MisfitError(f"the shared {A.shape} and {B.shape} are too small for the layer")
        state = {
            "lambdas": lambdas,
            "gammas": gammas,
            "seed": np.zeros(4, np.uint8),
            "basis_A": A[:, 0, :smaller],
            "basis_B": B[:larger, :n].reshape(larger, -1),
        }
        return Converted("randlora", r, m.alpha, state)

    def write(self, adapter: Adapter) -> Written:
        state, r = adapter.state, adapter.rank
        if "basis_A" not in state:
            raise MisfitError("its bases are drawn for each layer, and PEFT's for all layers")
        tensors = {"randlora_lambda": state["lambdas"], "randlora_gamma": state["gammas"]}
        B = state["basis_B"].reshape(len(state["basis_B"]), -1, r)
        bases = {"randlora_A": state["basis_A"][:, None], "randlora_B": B}
        settings = {"save_projection": True, "sparse": False, "very_sparse": False}
        return Written(adapter, tensors, settings, bases)

    def shares(self, modules: Modules) -> Tensors:
        """The pair of bases from which all layers take slices, for all and for each."""
        # PEFT makes it for a layer with the most outputs and the most inputs of all.
        most = np.max([written.adapter.layout.matrix for written in modules.values()], axis=0)
        smaller, larger = sorted(most.tolist())
        r = next(iter(modules.values())).adapter.rank
        sizes = {"randlora_A": (r, 1, smaller), "randlora_B": (larger, -(-smaller // r), r)}
        bases = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
        for name, basis in super().shares(modules).items():
            bases[name][tuple(map(slice, basis.shape))] = basis
        prefixes = ["base_model", *(f"{PREFIX}{module}" for module in modules)]
        return {f"{prefix}.{name}": basis for prefix in prefixes for name, basis in bases.items()}
