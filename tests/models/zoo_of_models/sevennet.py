"""A force field: SevenNet-0, with the weights of its authors.

The package needs Torch to run, and is not run: `studies.equivariant` reads its weights into layers
of e3nn-jax, and test_sevennet.py compares energies and forces with the authors' code.
"""

import functools
import json
import pathlib
from typing import Any

import numpy as np
from studies.equivariant._checkpoint import sevennet_0
from studies.equivariant._crystals import Crystal, graph_of
from studies.equivariant._force_field import energy_and_forces

# The default of `net.lora` knows e3nn's layers once this package is imported.
import jno_lora_e3nn  # noqa: F401

from .._model import Model

REFERENCES = pathlib.Path(__file__).parents[1] / "sevennet_references.json"

loaded = functools.cache(sevennet_0)


def references() -> dict[str, dict[str, Any]]:
    """Crystals, and the energies and forces of the authors' code, by the name of the crystal."""
    records = json.loads(REFERENCES.read_text())["crystals"]
    return {
        record["name"]: {name: np.array(value) for name, value in record.items()}
        for record in records
    }


def crystal(name: str) -> Crystal:
    """A crystal of the references."""
    record = references()[name]
    return Crystal(record["numbers"], record["positions"], record["cell"])


def _graph(name: str) -> Any:
    model, types = loaded()
    return graph_of(crystal(name), types, model.cutoff)


MODELS = (
    Model(
        "sevenn-sevennet-0",
        lambda key: loaded()[0],
        lambda key: (_graph("Si"),),
        energy_and_forces,
        note="real weights, 842,623 parameters; equivariant layers of e3nn-jax; the outputs are "
        "the energy and the forces, so that gradients are second derivatives",
        layers=33,
    ),
)
