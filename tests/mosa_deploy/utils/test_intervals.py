import math

import numpy as np
import pytest
from scipy import stats

from mosa_deploy.utils.intervals import Interval, mean_interval, median_interval, ratio_interval


def test_the_interval_of_a_mean_is_students_t_of_the_paired_differences() -> None:
    first, second = [0.6, 0.7, 0.8, 0.9], [0.65, 0.7, 0.9, 0.87]
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    found = mean_interval([b - a for a, b in zip(first, second, strict=True)])
    np.testing.assert_allclose(found, [np.mean(second) - np.mean(first), expected.low, expected.high])


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.25]).value == 0.25
    assert np.isnan(mean_interval([0.25])[1:]).all()


def test_an_interval_is_written_with_its_bounds_if_it_has_any() -> None:
    assert f"{Interval(1.0204, 0.986, 1.05):.2f}" == "1.02 (0.99 to 1.05)"
    assert f"{Interval(-0.01, -1.5, 1.5):+z.1f}" == "+0.0 (-1.5 to +1.5)"
    assert f"{mean_interval([0.25]):.3f}" == "0.250"


def test_the_interval_of_ratios_is_students_t_of_their_logarithms() -> None:
    ratios = np.random.default_rng(3).lognormal(np.log(1.05), 0.1, 5)
    low, high = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    np.testing.assert_allclose(ratio_interval(ratios), (stats.gmean(ratios), math.exp(low), math.exp(high)))
    assert ratio_interval([1.0] * 5) == (1.0, 1.0, 1.0)


def test_the_interval_of_ratios_covers_the_truth_about_19_times_in_20() -> None:
    draws = np.random.default_rng(3).lognormal(np.log(1.05), 0.1, (200, 5))
    found = [ratio_interval(values.tolist()) for values in draws]
    assert 180 <= sum(low <= 1.05 <= high for _, low, high in found) <= 198


@pytest.mark.parametrize("count", [10, 101])
def test_the_interval_of_a_median_is_scipys_percentile_bootstrap(count: int) -> None:
    ratios = np.random.default_rng(3).lognormal(0.05, 0.1, count)
    expected = stats.bootstrap((ratios,), np.median, n_resamples=2000, method="percentile", rng=0).confidence_interval
    median, low, high = median_interval(ratios)
    assert median == np.median(ratios)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)
