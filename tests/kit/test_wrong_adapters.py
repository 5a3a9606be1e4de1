"""The kit notices wrong adapters: for each, the required check that the table names fails."""

import pytest

from jno.lora.testing import ADVICE, CHECKS, ConformanceError, wrapper_checks

from .wrong_adapters import TABLE

NOTICED = [wrong for wrong in TABLE if wrong.noticed_by is not None]
SURVIVORS = [wrong for wrong in TABLE if wrong.noticed_by is None]


def test_the_table_is_large_and_says_what_is_wrong():
    assert len(TABLE) >= 140
    assert len({str(wrong) for wrong in TABLE}) == len(TABLE)
    assert all(wrong.fault.endswith(".") and "correct" not in wrong.fault for wrong in TABLE)
    assert len({wrong.fault for wrong in TABLE}) == len(TABLE)


def test_nearly_all_are_noticed_by_required_checks_and_survivors_have_a_reason():
    assert len(NOTICED) >= 0.95 * len(TABLE)
    assert all(wrong.survives for wrong in SURVIVORS)


def test_every_required_check_notices_a_wrong_adapter():
    assert {wrong.noticed_by for wrong in NOTICED} == set(CHECKS) - ADVICE


@pytest.mark.parametrize("wrong", NOTICED, ids=str)
def test_a_required_check_notices(wrong):
    messages = []
    for case in wrong.cases():
        try:
            wrapper_checks(case).get(wrong.noticed_by, bool)()
        except ConformanceError as err:
            messages.append(str(err))
            break
    (message,) = messages
    assert message.startswith(f"[{wrong.noticed_by}] {wrong}")
    assert "What to do" in message or "What is checked" in message
    # The fault is the adapter's, not the case's.
    assert wrong.noticed_by != "symmetries" or "breaks it: for " in message
