"""Proofs in files of adapters: whether loaded adapters compute what they computed when saved.

from jno_lora_proof import prove

net.save_adapters("adapters.safetensors", proof=inputs)
print(prove(loaded, "adapters.safetensors"))
"""

from ._inputs import Inputs
from ._proof import Proof, Row, prove, read_inputs, write_entries
from ._record import Entry, sign, sign_update

__all__ = [
    "Entry",
    "Inputs",
    "Proof",
    "Row",
    "prove",
    "read_inputs",
    "sign",
    "sign_update",
    "write_entries",
]
