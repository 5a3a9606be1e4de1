"""The version, in one place for all distributions of this repository."""

__version__ = "0.4.0"
