"""The study of conditional adapters again, in the right coordinate of a viscosity.

    python -m studies.again            # the four tasks: run all missing runs
    python -m studies.again.large      # the two large models, from `python -m studies.large.store`
    python -m studies.again --report   # write the section of docs/evidence/conditional-study.md

The goal was set before any run: an adapter with scales and shifts (`Conditional(film=True)`) trains
at most 5 % of the parameters, leaves the source as it is, has at most the error of the better FiLM
(by the number or by its logarithm; 3 % count as equal) at every unseen value inside the range, and
a lower error at every value outside. And one simulation of an unknown value gives a better estimate
of the value than the better FiLM does. The page has what is recorded so far.
"""
