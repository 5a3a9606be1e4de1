"""What `combine` can be asked for, and whether it makes sense."""

import dataclasses
from typing import Literal, get_args

from .._errors import SelectionError
from .._paths import nearest
from ._low_rank import check_part, check_rank
from ._task_arithmetic import MajoritySign

Method = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]

EXACT = ("linear", "cat")
SPARSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
TRIMMING = ("ties", "magnitude_prune")
RANDOM = ("dare_linear", "dare_ties")
ELECTING = ("ties", "dare_ties")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What `combine` was asked for, as static data of a program."""

    method: str
    density: float | None
    rank: int | None
    majority_sign: str

    def check(self, *, has_key: bool) -> None:
        """**Raises:** `SelectionError` for an argument that is missing or makes no sense."""
        method, methods = self.method, get_args(Method)
        if method not in methods:
            near = nearest(str(method), methods, n=1)[0]
            raise SelectionError(
                f"There is no method {method!r}; did you mean {near!r}? "
                f"The methods are {', '.join(methods)}."
            )
        if (self.density is not None) != (method in SPARSE):
            raise SelectionError(
                f"{method!r} needs a `density`, the part of the entries to keep, such as 0.5."
                if method in SPARSE
                else f"`density` is for {', '.join(SPARSE)}; {method!r} keeps every entry."
            )
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
        check_rank(self.rank)
        if self.majority_sign not in get_args(MajoritySign):
            raise SelectionError(
                f"`majority_sign` must be 'total' or 'frequency', but is {self.majority_sign!r}."
            )
        if self.majority_sign != "total" and method not in ELECTING:
            raise SelectionError(
                f"`majority_sign` is for {' and '.join(ELECTING)}; {method!r} elects no sign."
            )
