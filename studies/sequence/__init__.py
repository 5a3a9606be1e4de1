"""Four settings of one operator, one after the other: what is kept, and what is learned.

    python -m studies.sequence            # run all missing runs, also after an interrupted start
    python -m studies.sequence --report   # write docs/evidence/sequence-study.md from the results

The study also measures how two adapters of two settings combine into one adapter.
`docs/evidence/sequence-study.md` describes the protocol and the results.
"""
