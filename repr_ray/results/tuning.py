"""The gain from tuning against its cost.

The tuning curve of Dodge et al. (EMNLP 2019) is the expected best validation accuracy of a budget of k trials; its
bands are those of Lourie et al. (NAACL 2024, arXiv 2311.09480), computed by their library opda. They hold for all
budgets together, for trials at independent random points. Quasi-random points cover a search space more evenly than
random points, so that a curve from them is slightly conservative.
"""

import warnings

import numpy as np
import pandas as pd

from repr_ray.results.sequential import Array

NEAR = 0.01  # trials whose accuracy is within one point of the best are near it


def tuning_curve(accuracies: Array, level: float = 0.05) -> pd.DataFrame:
    """Expected best validation accuracy by budget, with a simultaneous band to 1 - `level`.

    `accuracies`, fractions of shape (trials,), are those of full-length trials at points of the search space; a trial
    that failed is NaN and counts as 0, the worst. A row of the result is a budget from 1 to the number of trials.
    """
    from opda.nonparametric import EmpiricalDistribution

    values = np.nan_to_num(np.asarray(accuracies, dtype=np.float64), nan=0.0)
    budgets = np.arange(1, len(values) + 1)
    with warnings.catch_warnings():  # accuracies are counts of images: equal ones are expected
        warnings.filterwarnings("ignore", "Duplicates detected", RuntimeWarning)
        low, point, high = EmpiricalDistribution.confidence_bands(
            values, 1 - level, a=0.0, b=1.0, method="ld_equal_tailed", generator=np.random.default_rng(0), n_jobs=1
        )
    # The lower band of the distribution function is that of the larger accuracies.
    curves = {"mean": point, "low": high, "high": low}
    return pd.DataFrame(
        {"budget": budgets} | {name: curve.average_tuning_curve(budgets) for name, curve in curves.items()}
    )


def sensitivity(accuracies: Array) -> dict[str, float]:
    """The sensitivity of a scheme to its settings, from trials over its search space; see `tuning_curve`.

    `best`, `median` and `worst` validation accuracy, and the share of trials within a point of the best, which is
    large for a scheme that needs no tuning.
    """
    values = np.nan_to_num(np.asarray(accuracies, dtype=np.float64), nan=0.0)
    return {
        "best": float(values.max()),
        "median": float(np.median(values)),
        "worst": float(values.min()),
        "near_best": float((values >= values.max() - NEAR).mean()),
    }
