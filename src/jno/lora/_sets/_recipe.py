"""The ways in which `combine` makes one update of several, and checks of its arguments."""

import dataclasses
from typing import Literal, get_args

from .._contract import check_part, check_rank
from .._errors import SelectionError
from .._paths import nearest
from ._task_arithmetic import MajoritySign

Combination = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]

EXACT = ("linear", "cat")
TRIMMING = ("ties", "magnitude_prune")
RANDOM = ("dare_linear", "dare_ties")
ELECTING = ("ties", "dare_ties")
_SPARSE = (*TRIMMING, *RANDOM)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static arguments of `combine`."""

    method: str
    density: float | None
    rank: int | None
    majority_sign: str

    def check(self, *, has_key: bool) -> None:
        """**Raises:** `SelectionError` if an argument is missing or makes no sense."""
        method, methods = self.method, get_args(Combination)
        if method not in methods:
            near = nearest(str(method), methods, n=1)[0]
            raise SelectionError(
                f"There is no method {method!r}; did you mean {near!r}? "
                f"The methods are {', '.join(methods)}."
            )
        if (self.density is not None) != (method in _SPARSE):
            raise SelectionError(
                f"{method!r} needs a `density`, the part of the entries to keep, such as 0.5."
                if method in _SPARSE
                else f"`density` is for {', '.join(_SPARSE)}; {method!r} keeps every entry."
            )
        if self.density is not None:
            check_part("density", self.density)
        if has_key != (method in RANDOM):
            raise SelectionError(
                f"{method!r} drops entries at random, and needs a `key`."
                if method in RANDOM
                else f"`key` is for {' and '.join(RANDOM)}; {method!r} is not random."
            )
        if self.rank is not None and method in EXACT:
            raise SelectionError(
                f"{method!r} is exact, so the ranks decide. For a smaller rank, use method='svd'."
            )
        if self.rank is not None:
            check_rank(self.rank)
        if self.majority_sign not in get_args(MajoritySign):
            raise SelectionError(
                f"`majority_sign` must be 'total' or 'frequency', but is {self.majority_sign!r}."
            )
        if self.majority_sign != "total" and method not in ELECTING:
            raise SelectionError(
                f"`majority_sign` is for {' and '.join(ELECTING)}; {method!r} elects no sign."
            )
