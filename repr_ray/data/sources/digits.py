"""The handwritten digits that scikit-learn ships."""

import numpy as np

from repr_ray.data.source import ArrayRows, Source, Splits
from repr_ray.study.data import Data


def digits(data: Data) -> Source:
    """1,797 digits of 8 x 8 pixels and 16 grey levels; a fixed fifth is the test set."""

    def read(scratch: object) -> Splits:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = labels.astype(np.int64)
        train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
        rows = {"train": ArrayRows(images[train], labels[train]), "test": ArrayRows(images[test], labels[test])}
        return Splits(rows, tuple("0123456789"))

    return Source(read)
