"""The problems of the study: a model with its equation, and a shifted setting."""

from collections.abc import Mapping
from dataclasses import dataclass

from .._families import FNO, POSEIDON, UNET, Family


@dataclass(frozen=True)
class Problem:
    """A shifted setting, for the model of a family. Shifts along `axes` make new simulations."""

    name: str
    title: str
    family: Family
    target: Mapping[str, float]
    axes: tuple[int, ...]
    text: str


# The shifts were chosen before any method was run on them, and not changed since: a less viscous
# fluid, a force that the model never saw, a faster and more reactive flow, a less viscous and
# driven flow. Only the error of the untouched model decided their sizes. The aim was an error of
# about 20 %. A first choice of larger shifts gave up to 98 %.
PROBLEMS = (
    Problem(
        "burgers-viscosity",
        "Burgers, viscosity",
        FNO,
        {"viscosity": 0.04},
        (1,),
        "`fno1d` on `u_t + u u_x = nu u_xx`, from `nu = 0.1` to `nu = 0.04`.",
    ),
    Problem(
        "burgers-force",
        "Burgers, force",
        FNO,
        {"viscosity": 0.1, "force": 0.2},
        (),
        "The same model, `nu = 0.1`, with the force `0.2 sin x` on the right side. The force "
        "depends on the place, so shifts make no new simulations.",
    ),
    Problem(
        "allen-cahn",
        "Allen-Cahn, advection",
        UNET,
        {"velocity": 1.1, "diffusion": 0.02, "reaction": 1.5},
        (1,),
        "`unet1d` on `u_t + c u_x = 0.02 u_xx + r (u - u³)`, from `c = 1`, `r = 1` to `c = 1.1`, "
        "`r = 1.5`.",
    ),
    Problem(
        "navier-stokes",
        "Navier-Stokes",
        POSEIDON,
        {"viscosity": 0.004, "force": 0.5},
        (1,),
        "`poseidon` on the vorticity of a plane flow at 32 x 32 points after half a unit of time, "
        "from the viscosity `0.02` to `0.004` with the force `0.5 cos 2y`, along which shifts make "
        "no new simulations.",
    ),
)
