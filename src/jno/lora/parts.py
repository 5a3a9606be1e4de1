"""Parts of the core that the other distributions of this project use.

Their versions move together, so these names may change in any release. Plugins of other authors
use `jno.lora.extending`.
"""

from ._checkpoint import write_file
from ._contract import construct, contract_problems, statistic_keys, statistics_of, takes
from ._paths import stable_hash
from ._shared_arrays import shared_arrays, with_shared_arrays
from ._showing import tracked

__all__ = [
    "construct",
    "contract_problems",
    "shared_arrays",
    "stable_hash",
    "statistic_keys",
    "statistics_of",
    "takes",
    "tracked",
    "with_shared_arrays",
    "write_file",
]
