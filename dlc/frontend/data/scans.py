"""The handwritten digits that come with scikit-learn: real data without a download.

They are the test half of the UCI set "Optical recognition of handwritten digits": 1797 digits by 13
people, each pixel the number of black points in a 4 x 4 cell of the scan.
"""

from __future__ import annotations

import numpy as np

from dlc.errors import ArgumentError, DependencyError, explain
from dlc.frontend.data.dataset import ArrayDataset
from dlc.frontend.data.idx import DIGITS
from dlc.frontend.data.warp import resize


def digits(size: int = 8) -> ArrayDataset:
    """1797 real handwritten digits, in ten classes of about 180.

    Parameters
    ----------
    size : int
        Height and width of the images: 8, as they are, or larger, bilinear; 28 is MNIST's.

    Returns
    -------
    ArrayDataset
        Images, float32 (1, size, size), ink 1 on paper 0; labels, int64.

    Raises
    ------
    DependencyError
        scikit-learn, which brings the data, is not installed.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 8:
        raise ArgumentError(explain("digits", "a size of at least 8", repr(size)))
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "dlc.data.digits needs scikit-learn, which brings the scans"
        raise DependencyError(f"{message}: pip install 'dlc[examples]'") from error
    values, labels = load_digits(return_X_y=True)
    images = values.reshape(-1, 1, 8, 8).astype(np.float32) / np.float32(16)
    if size > 8:
        images = resize(images, size, size)
    return ArrayDataset(images, labels.astype(np.int64), classes=DIGITS)
