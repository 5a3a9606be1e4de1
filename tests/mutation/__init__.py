"""Mutation testing of the core and the zoo, on a random sample of mutants: `make mutation`."""
