"""SevenNet-0 with the weights of its authors, from the wheel of `sevenn`, without Torch."""

import functools
import importlib.util
import io
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._force_field import ForceField, Interaction

# SevenNet-0 of 11 July 2024, under the MIT licence.
CHECKPOINT = "pretrained_potentials/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth"


def sevennet_0() -> tuple[ForceField, dict[int, int]]:
    """SevenNet-0, and the index of the species of each atomic number.

    **Raises:** `ImportError` if the package `sevenn`, which has the weights, is not installed.
    """
    package = importlib.util.find_spec("sevenn")
    if package is None or not package.submodule_search_locations:
        raise ImportError(
            "The weights of SevenNet-0 come with the package sevenn, which is not installed: "
            "pip install --no-deps sevenn==0.13.0"
        )
    checkpoint = read_torch(pathlib.Path(package.submodule_search_locations[0]) / CHECKPOINT)
    config, state = checkpoint["config"], checkpoint["model_state_dict"]
    return _loaded(config, state), config["_type_map"]


def read_torch(path: pathlib.Path) -> Any:
    """What a file of `torch.save` has, with NumPy arrays in the place of tensors.

    **Raises:** `pickle.UnpicklingError` if the file names a class that no checkpoint needs.
    """
    with zipfile.ZipFile(path) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
        return _Unpickler(file, name.removesuffix("data.pkl")).load()


def _tensor(storage: np.ndarray, start: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    strides = [storage.itemsize * stride for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[start:], shape, strides)


_CLASSES = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.FloatStorage": np.float32,
    "torch.device": str,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": np.ndarray(0).__reduce__()[0],
    "_codecs.encode": lambda text, encoding: text.encode(encoding),
}


class _Unpickler(pickle.Unpickler):
    """Reads the classes of a checkpoint, and no other class: a pickle can run any function."""

    def __init__(self, file: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(file.read(f"{folder}data.pkl")))
        self._file, self._folder = file, folder

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _CLASSES:
            raise pickle.UnpicklingError(
                f"The file asks for {module}.{name}. Expected the classes of a checkpoint of "
                f"SevenNet: {', '.join(_CLASSES)}."
            )
        return _CLASSES[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._file.read(f"{self._folder}data/{key}"), dtype)


def _loaded(config: dict[str, Any], state: dict[str, np.ndarray]) -> ForceField:
    radial = [config["radial_basis"]["bessel_basis_num"], *config["weight_nn_hidden_neurons"]]
    build = functools.partial(
        ForceField,
        config["irreps_manual"],
        len(config["_type_map"]),
        widths=radial,
        cutoff=config["cutoff"],
        inner_cutoff=config["cutoff_function"]["cutoff_on"],
    )
    # Without the time of drawing weights that are replaced.
    model = eqx.filter_eval_shape(build, key=jax.random.key(0))
    interactions = tuple(
        _interaction(layer, f"{index}_", state) for index, layer in enumerate(model.interactions)
    )
    return eqx.tree_at(
        lambda m: (m.frequencies, m.embedding, m.interactions, m.readout, m.scale, m.shift),
        model,
        (
            jnp.asarray(state["edge_embedding.basis_function.coeffs"]),
            _linear(model.embedding, state["onehot_to_feature_x.linear.weight"]),
            interactions,
            (
                _linear(model.readout[0], state["reduce_input_to_hidden.linear.weight"]),
                _linear(model.readout[1], state["reduce_hidden_to_energy.linear.weight"]),
            ),
            jnp.asarray(state["rescale_atomic_energy.scale"]),
            jnp.asarray(state["rescale_atomic_energy.shift"]),
        ),
    )


def _linear(layer: Any, flat: np.ndarray) -> Any:
    """The layer with the paths' matrices, which lie one after another in `flat`."""
    weights, start = dict(layer._weights), 0
    for path in layer._linear.instructions:
        (name,) = (n for n in weights if n.startswith(f"w[{path.i_in},{path.i_out}] "))
        size = path.path_shape[0] * path.path_shape[1]
        weights[name] = jnp.asarray(flat[start : start + size].reshape(path.path_shape))
        start += size
    if start != flat.size:
        raise ValueError(f"The paths have {start} weights, and the checkpoint {flat.size}.")
    return eqx.tree_at(lambda layer: layer._weights, layer, weights)


def _interaction(layer: Interaction, name: str, state: dict[str, np.ndarray]) -> Interaction:
    weights = [state[f"{name}convolution.weight_nn.layer{i}.weight"] for i in range(3)]
    weights[2] = _sorted(
        weights[2], layer, f"{name}convolution.convolution._compiled_main_left_right.", state
    )
    # e3nn divides by the square root of the number of inputs when it is called.
    radial = [jnp.asarray(w.T / np.sqrt(len(w)), jnp.float32) for w in weights]
    linears = ("self_connection_intro", "self_interaction_1", "self_interaction_2")
    flat = [state[f"{name}{part}.linear.weight"] for part in linears]
    return eqx.tree_at(
        lambda i: (i.shortcut, i.before, i.after, *(r.weight for r in i.radial), i.divisor),
        layer,
        (
            _linear(layer.shortcut, flat[0]),
            _linear(layer.before, flat[1]),
            _linear(layer.after, flat[2]),
            *radial,
            jnp.asarray(state[f"{name}convolution.denominator"][0]),
        ),
    )


def _sorted(
    weight: np.ndarray, layer: Interaction, name: str, state: dict[str, np.ndarray]
) -> np.ndarray:
    """The last radial matrix, with its columns sorted by the irrep of the message.

    Checkpoints before version 0.11 have the columns by the irreps of the features. Some of the
    Wigner symbols have another sign than e3nn's, which the columns take.
    """
    blocks: list[tuple[int, np.ndarray]] = []
    kept = {ir.l for _, ir in layer.irreps_out}
    start, largest = 0, max(kept) if max(kept) > 0 else layer.before.irreps_in.lmax
    for mul, ir in layer.before.irreps_in:
        for of_harmonic in range(largest + 1):
            for of_message in range(abs(ir.l - of_harmonic), ir.l + of_harmonic + 1):
                if of_message not in kept:
                    continue
                degrees = (ir.l, of_harmonic, of_message)
                symbol = state.get(f"{name}_w3j_" + "_".join(map(str, degrees)))
                sign = 1
                if symbol is not None:
                    sign = np.sign(np.sum(symbol * e3nn.clebsch_gordan(*degrees)))
                blocks.append((of_message, sign * weight[:, start : start + mul]))
                start += mul
    if start != weight.shape[1]:
        raise ValueError(f"The messages have {start} weights, the checkpoint {weight.shape[1]}.")
    return np.concatenate([block for _, block in sorted(blocks, key=lambda b: b[0])], axis=1)
