"""Proofs in files of adapters: whether loaded adapters compute what they computed when saved.

from jno_lora_proof import prove

net.save_adapters("adapters.safetensors", proof=inputs)
print(prove(loaded, "adapters.safetensors"))
"""

from ._inputs import Inputs
from ._proof import Proof, Row, prove, read_inputs

__all__ = ["Inputs", "Proof", "Row", "prove", "read_inputs"]
