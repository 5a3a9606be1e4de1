"""The conformance kit: whether an adapter keeps every promise that jno-lora makes.

```python
import equinox as eqx
import jax
from jno.lora.testing import WrapperCase, parametrize_with_checks

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
"""

from ._case import WrapperCase, standard_cases, standard_layers
from ._conformance import ConformanceError
from ._pytest import parametrize_with_checks
from ._run import CHECKS, CheckResult, check_wrapper, run_checks, wrapper_checks

__all__ = [
    "CHECKS",
    "CheckResult",
    "ConformanceError",
    "WrapperCase",
    "check_wrapper",
    "parametrize_with_checks",
    "run_checks",
    "standard_cases",
    "standard_layers",
    "wrapper_checks",
]
