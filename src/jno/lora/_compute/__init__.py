"""Arithmetic on layers: its dtypes, and decompositions that cannot hang."""
