"""One adapter for every value of a parameter? Neural operators over a range of settings.

    python -m studies.conditional            # run all missing runs, also after an interrupted start
    python -m studies.conditional --report   # write docs/evidence/conditional-study.md

`docs/evidence/conditional-study.md` describes the protocol and the results.
"""
