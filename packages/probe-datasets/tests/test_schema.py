import pytest

from probe_datasets.schema import Coverage


def test_coverage_must_add_up():
    coverage = Coverage(expected=5, found=3, missing=1, failed=1)
    assert (coverage.ignored, coverage.reasons) == (0, ())
    with pytest.raises(ValueError, match="expected 5 samples must be found 3"):
        Coverage(expected=5, found=3)
