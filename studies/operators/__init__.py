"""Which adapter for my operator? Pretrained neural operators move to shifted settings.

    python -m studies.operators            # run what is missing, then go on where it was stopped
    python -m studies.operators --report   # write docs/operators.md from the results

`docs/operators.md` has the protocol and the results.
"""
