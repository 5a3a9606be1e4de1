"""Write `sevennet_references.json`: energies and forces of SevenNet-0 by its authors' code.

The tests do not need Torch. An environment for this program, anywhere outside of the repository:

    pip install torch sevenn==0.13.0
    python tests/models/sevennet_references.py
"""

import json
import pathlib

import ase
import ase.build
import sevenn
import torch
from sevenn.calculator import SevenNetCalculator

CRYSTALS = {"NaCl": ("rocksalt", 5.64), "Si": ("diamond", 5.43)}
RATTLE = 0.1  # angstrom


def main() -> None:
    """Two rattled cells of eight atoms."""
    calculator = SevenNetCalculator("7net-0_11July2024", device="cpu")
    records = []
    for name, (structure, a) in CRYSTALS.items():
        atoms = ase.build.bulk(name, structure, a=a, cubic=True)
        atoms.rattle(RATTLE, seed=0)
        atoms.calc = calculator
        records.append(
            {
                "name": name,
                "numbers": atoms.numbers.tolist(),
                "cell": atoms.cell.array.tolist(),
                "positions": atoms.positions.tolist(),
                "energy": float(atoms.get_potential_energy(force_consistent=True)),
                "forces": atoms.get_forces().tolist(),
            }
        )
    versions = {"sevenn": sevenn.__version__, "torch": torch.__version__, "ase": ase.__version__}
    text = json.dumps({"versions": versions, "crystals": records}, indent=1)
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
