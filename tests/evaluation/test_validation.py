"""What is refused, by name; the errors of the measures built on it are tested with them."""

import numpy as np
import pandas as pd
import pytest

from memlens.evaluation import validation


def test_a_vector_is_read_as_float64_whatever_holds_it():
    for values in ([1, 2], (True, False), np.float32([1, 2]), pd.Series([1, 2])):
        found = validation.vector("x", values)
        assert found.dtype == np.float64 and found.shape == (2,)


@pytest.mark.parametrize(("values", "error", "said"), [
    ([1, np.nan, -np.inf], ValueError, "x holds 2 non-finite values .* among 3"),
    ([[1, 2]], ValueError, r"x has shape \(1, 2\)"), ([], ValueError, "at least one sample"),
    (3.0, ValueError, r"x has shape \(\)"), (["cat"], TypeError, "x is not numeric"),
])  # fmt: skip
def test_what_is_no_vector_is_refused(values, error, said):
    with pytest.raises(error, match=said):
        validation.vector("x", values)


def test_a_pair_has_one_length_and_two_series_one_index():
    a, b = validation.paired([1, 2], pd.Series([3, 4], index=[7, 8]), "a", "b")
    assert (a.tolist(), b.tolist()) == ([1, 2], [3, 4])
    with pytest.raises(ValueError, match="a has 2 samples, b 3"):
        validation.paired([1, 2], [1, 2, 3], "a", "b")
    with pytest.raises(ValueError, match="a and b have different indices"):
        validation.paired(pd.Series([1, 2]), pd.Series([1, 2], index=[1, 0]), "a", "b")


def test_columns_are_vectors_and_an_error_names_the_one_that_is_none():
    frame = pd.DataFrame({"csg": [1, 2], "csl": [0.5, np.nan]})
    assert validation.vectors(frame[["csg"]], "score")["csg"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="score column 'csl' holds 1 non-finite"):
        validation.vectors(frame, "score")
    for wrong in (frame.to_numpy(), frame["csg"], frame[[]], frame[["csg", "csg"]]):
        with pytest.raises(TypeError, match="pass a DataFrame, each score column once"):
            validation.vectors(wrong, "score")


def test_a_series_is_matched_by_index_and_an_array_by_row():
    frame = pd.DataFrame({"csg": [1, 2, 3]}, index=[5, 3, 4])
    values = pd.Series([30, 50, 70], index=[3, 5, 7])
    np.testing.assert_array_equal(validation.aligned(values, frame, "truth"), [50, 30, np.nan])
    np.testing.assert_array_equal(validation.aligned([1, 2, 3], frame, "truth"), [1, 2, 3])
    with pytest.raises(ValueError, match=r"truth has shape \(2,\): pass \(3,\) or a Series"):
        validation.aligned([1, 2], frame, "truth")
    with pytest.raises(ValueError, match="truth or its frame has an index label twice"):
        validation.aligned(pd.concat([values, values]), frame, "truth")
