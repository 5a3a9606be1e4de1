"""The benchmarks are a package of the repository's root, which is not installed."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2]))
