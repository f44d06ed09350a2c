"""A source of images that are not in a folder: scikit-learn's digits, inverted.

`repr-ray launch 'data={name: negatives, source: negatives:negatives, validation_images: 200}'`
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from repr_ray.data.source import ArrayRows, Source, Splits
from repr_ray.study.data import Data


def negatives(data: Data) -> Source:
    """Decoded images (uint8, n x height x width x channels) and labels; a test set is drawn by class."""

    def read(scratch: Path) -> Splits:
        pixels, labels = load_digits(return_X_y=True)
        images = 255 - np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        return Splits({"train": ArrayRows(images, labels.astype(np.int64))}, tuple("0123456789"))

    return Source(read)
