"""What the study runs: two shifted settings, and a viscosity that varies."""

from dataclasses import replace

from .._families import Effort
from ..conditional._methods import (
    AGAIN as AGAIN_METHODS,
    AGAIN_HEADLINE,
    COMBINED,
    FILM,
    FILM_BY_NUMBER,
    FULL,
    HEADLINE,
    METHODS as CONDITIONAL_METHODS,
)
from ..conditional._runs import FIT, FITS, RESULTS, SETS, TARGET, Plan as ConditionalPlan
from ..conditional._tasks import Task
from ..operators._methods import METHODS, Method
from ..operators._problems import Problem
from ..operators._runs import Plan
from ._models import FNO, TRANSFORMER

# A run here takes a hundred times as long as in the first study. So there are fewer seeds and
# rates, and batches have half the size. All methods ran with the first seed.
_EFFORT = Effort(
    pool=64, test=64, samples=(4, 16, 64), seeds=2, rates=(0.1, 0.3, 1.0, 3.0), batch=4, steps=400
)
# The methods that the first study and the guide recommend, and rank by frequency.
_NAMES = ("full", "lora 1, cp 4", "dora 1, cp 4", "lora 1, gain", "lora 1, cp 4, attention")
_BANDS = Method("lora 1, bands", "lora", rank=1, spectral_rank=2, bands={3: 2, 6: 1})
# The error of the untouched FNO alone chose the setting: a flow of a tenth of the viscosity.
_TARGET = {"viscosity": 0.002}
_TEXT = (
    "of {:.2f} million parameters on the vorticity of a plane flow at 64 x 64 points after one "
    "unit of time, from the viscosity `0.02` to `0.002`."
)
PROBLEMS = (
    Problem("fno2d", "FNO in 2-D", FNO, _TARGET, (1, 2), f"`fno2d` {_TEXT.format(2.37)}"),
    Problem(
        "poseidon", "Transformer", TRANSFORMER, _TARGET, (1, 2), f"`poseidon` {_TEXT.format(2.71)}"
    ),
)
PLAN = Plan(
    PROBLEMS,
    (*(m for name in _NAMES for m in METHODS if m.name == name), _BANDS),
    _EFFORT,
    keeping=(),
    further={
        "full": (0.03,),
        **dict.fromkeys(
            ("lora 1, cp 4", "dora 1, cp 4", "lora 1, gain", "lora 1, cp 4, attention"), (10.0,)
        ),
    },
)

TASKS = tuple(
    Task(
        f"{problem.name}-viscosity",
        problem.title,
        problem.family,
        "viscosity",
        (0.014, 0.008, 0.0045, 0.0025),
        (0.006,),
        (0.002, 0.0015),
        (0.014, 0.012, 0.009, 0.008, 0.005, 0.0045, 0.003, 0.0025),
        True,
        (1, 2),
        "",
    )
    for problem in PROBLEMS
)
CONDITIONAL = ConditionalPlan(
    TASKS,
    tuple(m for m in CONDITIONAL_METHODS if m.name in (HEADLINE, COMBINED, FILM.name, FULL)),
    (),
    Effort(pool=64, test=32, samples=(16, 64), seeds=1, batch=4, steps=400),
    left_out=(SETS, FIT, FITS),
)
CONDITIONAL_RESULTS = RESULTS.with_name("large-conditional.jsonl")
# The goal compares the first three. The rest run with 16 simulations and one seed, if they are not
# recorded already.
_COMPARED = (AGAIN_HEADLINE, FILM_BY_NUMBER.name, FILM.name)
_VARIANTS = tuple(m for m in AGAIN_METHODS if m.film and m.name != AGAIN_HEADLINE)
AGAIN = replace(
    CONDITIONAL,
    main=tuple(m for name in _COMPARED for m in CONDITIONAL_METHODS if m.name == name),
    second=(*_VARIANTS, *(m for m in CONDITIONAL_METHODS if m.name in (HEADLINE, FULL))),
    effort=replace(CONDITIONAL.effort, seeds=2),
    left_out=(TARGET, SETS, FIT),
    repeats_all=True,
    files=(CONDITIONAL_RESULTS,),
)
AGAIN_RESULTS = RESULTS.with_name("large-conditional-again.jsonl")
