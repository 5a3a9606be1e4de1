"""An adapter for each check, which this check notices."""

from tests.kit.broken_adapters import MisspeltField
from tests.kit.broken_under_jax import BROKEN

from jno.lora.testing import ADVICE

from ._rows import wrong

wrong("contract")(MisspeltField)
for _check, _adapter in BROKEN.items():
    if _check == "jet-rules":
        continue  # the adapter is right, and JAX has a gap
    if _check in ADVICE:
        wrong(None, survives=f"the check `{_check}` is advice")(_adapter)
    else:
        wrong(_check)(_adapter)
