"""The contract of an adapter, and checks of arguments."""
