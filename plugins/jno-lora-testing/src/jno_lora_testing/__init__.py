"""The conformance kit: check that an adapter keeps every promise that jno-lora makes.

```python
import equinox as eqx
import jax
from jno_lora_testing import WrapperCase, parametrize_with_checks

case = WrapperCase(
    MyAdapter,
    base=lambda key: eqx.nn.Linear(6, 4, key=key),
    inputs=lambda key: (jax.random.normal(key, (6,)),),
)


@parametrize_with_checks([case])
def test_conformance(check):
    check()
```

Without pytest: `check_wrapper(case)`, or `jno-lora check my_package:MyAdapter`.

Most checks are *required*: users of an adapter rely on them. Some are *advice* (`ADVICE`): an
adapter that fails them still works, but for fewer layers or less precisely.
"""

from ._case import WrapperCase
from ._conformance import ConformanceError
from ._run import (
    ADVICE,
    CHECKS,
    CheckResult,
    check_wrapper,
    messages,
    parametrize_with_checks,
    run_checks,
    wrapper_checks,
)
from ._standard_cases import standard_cases, standard_layers
from ._symmetries import Symmetry, cyclic_shift, invariant, permutation, rotation
from ._tiers import TIERS, tier_of

__all__ = ["ADVICE", "CHECKS", "TIERS"]
__all__ += ["CheckResult", "ConformanceError", "WrapperCase", "standard_cases", "standard_layers"]
__all__ += ["check_wrapper", "messages", "parametrize_with_checks", "run_checks", "tier_of"]
__all__ += ["wrapper_checks"]
__all__ += ["Symmetry", "cyclic_shift", "invariant", "permutation", "rotation"]
