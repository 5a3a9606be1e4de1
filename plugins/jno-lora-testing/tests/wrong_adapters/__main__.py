"""Prints the share of the wrong adapters that the kit notices, and the survivors by name.

    PYTHONPATH=plugins/jno-lora-testing/tests python -m wrong_adapters

`test_wrong_adapters.py` tries each adapter with the check that the table names.
"""

import conftest  # noqa: F401  (the settings of every test)

from jno_lora_testing import ADVICE

from . import TABLE

print(f"{'class of fault':16} {'adapters':>9} {'required':>9} {'with advice':>12}")
for family in [*dict.fromkeys(wrong.family for wrong in TABLE), ""]:
    rows = [wrong for wrong in TABLE if family in (wrong.family, "")]
    noticed = [wrong for wrong in rows if wrong.noticed_by]
    required = [wrong for wrong in noticed if wrong.noticed_by not in ADVICE or wrong.also]
    shares = len(required) / len(rows), len(noticed) / len(rows)
    print(f"{family or 'all':16} {len(rows):9} {shares[0]:9.1%} {shares[1]:12.1%}")
print("Survivors of the required checks:")
for wrong in TABLE:
    if wrong.survives:
        print(f"{wrong} [{wrong.noticed_by or 'no check'}]: {wrong.survives}")
