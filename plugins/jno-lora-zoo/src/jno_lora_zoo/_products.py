"""Updates that are products `B A`, and how to take them from adapters."""

from typing import NamedTuple

from jaxtyping import Array, Inexact

from jno.lora import LoRAWrapper, LowRankForm, MatrixAdapter
from jno.lora.extending import at_least_float32, filler, over_stack, run, widest


class Factors(NamedTuple):
    """The update `B A` of a matrix."""

    A: Inexact[Array, "*stack k in"]
    B: Inexact[Array, "*stack out k"]

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def largest_rank(self) -> int:
        return min(self.B.shape[-2], self.A.shape[-1])

    def as_adapter(self, cls: type[LoRAWrapper]) -> tuple[dict[str, Array], int, float]:
        """State, rank and alpha (the rank) of an adapter of a class with a `low_rank_scale`."""
        scale = MatrixAdapter.of(cls).low_rank_scale(self.rank, float(self.rank))
        assert scale is not None
        dtype = widest([self.A.dtype, self.B.dtype])
        state = {"lora_A": self.A.astype(dtype), "lora_B": self.B.astype(dtype) / scale}
        return state, self.rank, float(self.rank)


def known_factors(adapter: LoRAWrapper) -> Factors | None:
    """`A` and `B` of an adapter that only adds the product `B A`; `None` for other adapters."""
    form = known_form(adapter)
    return Factors(form.A, form.B) if form is not None and form.is_product else None


def known_form(adapter: LoRAWrapper) -> LowRankForm | None:
    """The `low_rank_form` in float32 at least, with the axes of a stack in front."""
    adapter = filler(adapter)(adapter)  # a program would keep the arrays of `resolve` as constants
    return run(_low_rank_form, adapter)


def _low_rank_form(adapter: LoRAWrapper) -> LowRankForm | None:
    cls = MatrixAdapter.of(type(adapter))
    # Half precision would round the scale in a factor, or overflow.
    wide = at_least_float32(adapter)
    return over_stack(cls.low_rank_form, cls.stack_ndim(adapter.base))(wide)
