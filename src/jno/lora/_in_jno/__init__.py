"""The parts of `jno.lora.in_jno`: what stands in for jNO's adapters, and where."""

from ._adapting import trained_adapters
from ._installs import JNO_DISTRIBUTIONS, describe_jno, find_bad_installs, jno_version
from ._places import Replacement, forbid_lora

__all__ = [
    "JNO_DISTRIBUTIONS",
    "Replacement",
    "describe_jno",
    "find_bad_installs",
    "forbid_lora",
    "jno_version",
    "trained_adapters",
]
