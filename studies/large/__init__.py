"""Which adapter for an operator of more than a million parameters?

    python -m studies.large.store         # first: pretrain the two models, on this machine
    python -m studies.large               # run all missing runs, also after an interrupted start
    python -m studies.large.conditional   # the second part: one adapter for every viscosity
    python -m studies.large --report      # write docs/evidence/large-study.md from the results

`docs/evidence/large-study.md` describes the protocol and the results.
"""
