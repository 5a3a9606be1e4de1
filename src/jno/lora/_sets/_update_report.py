"""Reports on updates that were rewritten: the rank and the lost fraction of each."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._contract import LoRAWrapper
from .._paths import show_path
from .._showing import Printed, Table, table


class UpdateRow(eqx.Module):
    """One new adapter.

    - `wrapper`: its class; `former`: the class of the (first) adapter that it was made from.
    - `error`: `||new update - update|| / ||update||` in the Frobenius norm, over a whole stack.
    """

    path: str = eqx.field(static=True)
    former: type[LoRAWrapper] = eqx.field(static=True)
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    error: Float[Array, ""]


class UpdateReport(eqx.Module, Printed[UpdateRow]):
    """The rank and the error of each new adapter. A pytree; prints as a table."""

    rows: tuple[UpdateRow, ...]

    @property
    def error(self) -> Float[Array, ""]:
        """The largest error."""
        errors = [jnp.asarray(row.error, jnp.float32) for row in self.rows]
        return jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *errors]))

    def _table(self) -> Table:
        columns = [(name, "left") for name in ("path", "from", "to")]
        columns += [("rank", "right"), ("error", "right")]
        rows: list[tuple[str, ...]] = []
        for row in self.rows:
            names = show_path(row.path), row.former.__name__, row.wrapper.__name__
            rank = "" if row.rank is None else f"{row.rank}"
            rows.append((*names, rank, f"{float(row.error):.1e}"))
        caption = "error: the fraction of the update that is lost"
        return table(f"{len(self.rows)} adapters", columns, rows, caption, by_path=True)
