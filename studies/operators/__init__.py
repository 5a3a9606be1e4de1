"""Which adapter for my operator? Pretrained neural operators move to shifted settings.

    python -m studies.operators            # run all missing runs, also after an interrupted start
    python -m studies.operators --report   # write docs/evidence/operators.md from the results

`docs/evidence/operators.md` describes the protocol and the results.
"""
