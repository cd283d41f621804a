"""The matrix: every module of cases registers its own."""

from tests.bitexact import data, loops, models, optimizers
from tests.bitexact.case import CASES, Case, seed_everything

__all__ = ["CASES", "Case", "data", "loops", "models", "optimizers", "seed_everything"]
