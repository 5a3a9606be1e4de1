"""What a conversion keeps of each update."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper, Table
from jno.lora.extending import Printed, show_path, table, warn

_ENOUGH = 0.9  # the fraction of updates to keep, below which a report warns


class UpdateRow(eqx.Module):
    """One new adapter.

    - `wrapper`: its class; `former`: the class of the (first) adapter that it was made from, or of
        the layer (`extract_lora`).
    - `error`: `||new update - update|| / ||update||` in the Frobenius norm, over a whole stack.
    - `energy`: the fraction of `||update||^2` that is kept, `1 - error^2`.
    - `size`: `||update||`, of `extract_lora` alone.
    """

    path: str = eqx.field(static=True)
    former: type[eqx.Module] = eqx.field(static=True)
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    error: Float[Array, ""]
    size: Float[Array, ""] | None = None

    @property
    def energy(self) -> Float[Array, ""]:
        return 1 - self.error * self.error


class UpdateReport(eqx.Module, Printed[UpdateRow]):
    """The rank and the error of each new adapter. A pytree; prints as a table.

    - `leftovers`: the paths of changed arrays that no LoRA adapts (`extract_lora`).
    """

    rows: tuple[UpdateRow, ...]
    leftovers: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def error(self) -> Float[Array, ""]:
        """The largest error."""
        errors = [jnp.asarray(row.error, jnp.float32) for row in self.rows]
        return jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *errors]))

    @property
    def kept(self) -> float | None:
        """The fraction of the squared norm of all updates that is kept; `None` without sizes."""
        squares = [float(row.size) ** 2 for row in self.rows if row.size is not None]
        energies = [float(row.energy) for row in self.rows]
        return float(np.average(energies, weights=squares)) if any(squares) else None

    def warn_of_loss(self) -> "UpdateReport":
        """This report. Warns if less than 90 % is `kept`."""
        kept = self.kept
        if kept is not None and kept < _ENOUGH:
            warn(self._in_words(kept))
        return self

    def _in_words(self, kept: float) -> str:
        least = min(self.rows, key=lambda row: float(row.energy))
        said = (
            f"The LoRA keeps {kept:.1%} of the change (by its squared norm), and the least, "
            f"{float(least.energy):.1%}, at {show_path(least.path)!r}."
        )
        if kept >= _ENOUGH:
            return said
        return (
            f"{said} Below {_ENOUGH:.0%}, outputs may be far from the fine-tuned model's. Give a "
            "higher `rank`, or `energy=0.95`, and measure the result."
        )

    def _table(self) -> Table:
        columns = [(name, "left") for name in ("path", "from", "to")]
        columns += [(name, "right") for name in ("rank", "error", "energy")]
        cells = (
            (
                show_path(row.path),
                row.former.__name__,
                row.wrapper.__name__,
                "" if row.rank is None else f"{row.rank}",
                f"{float(row.error):.1e}",
                f"{float(row.energy):.2%}",
            )
            for row in self.rows
        )
        caption = "error: ‖lost‖ / ‖update‖; energy: the fraction of ‖update‖² that is kept"
        kept = self.kept
        if kept is not None:
            caption += f"\n{self._in_words(kept)}"
        if self.leftovers:
            caption += f"\nchanged, and not adapted: {', '.join(map(show_path, self.leftovers))}"
        return table(f"{len(self.rows)} adapters", columns, cells, caption, by_path=True)
