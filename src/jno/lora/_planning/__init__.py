"""The selection of a call: its arguments parsed, the claims of adapters on layers, and a plan."""
