"""Adapters by physics, without labels: when they pay for PINNs and for operators, and when not.

    python -m studies.physics            # run all missing runs, also after an interrupted start
    python -m studies.physics --quick    # see that everything runs; discard the results
    python -m studies.physics --report   # write the tables of docs/evidence/physics.md

`docs/evidence/physics.md` describes the protocol and the results.
"""
