from __future__ import annotations

import numpy as np
import pytest

from app.data.labels import region_mask


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0], [0, 1, 2, 4, 0], [0, 1, 2, 3, 4]])
def test_regions_of_every_year(labels):
    """The enhancing tumour is 3, or 4 where there is no 3; a 4 beside a 3 is a resection cavity."""
    labels = np.array(labels)
    assert region_mask(labels, "ET").tolist() == [False, False, False, True, False]
    assert region_mask(labels, "TC").tolist() == [False, True, False, True, False]
    assert region_mask(labels, "WT").tolist() == [False, True, True, True, False]
