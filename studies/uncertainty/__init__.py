"""How well are the error bars of five adapters calibrated, beside five models of other kinds?

python -m studies.uncertainty            # the runs that the file of results lacks
python -m studies.uncertainty --report   # the tables of docs/evidence/uncertainty.md
"""
