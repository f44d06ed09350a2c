"""The data of one set of pictures: the trials of a data set, model and variant."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from repr_ray.results.compare import Comparison
from repr_ray.results.store import Tables


@dataclass(frozen=True)
class Block:
    """The trials of one data set, model and variant, and where their rows are."""

    name: str
    comparison: Comparison
    table: pd.DataFrame  # rows of the comparison
    trials: pd.DataFrame
    tables: Tables

    @property
    def schemes(self) -> list[str]:
        """In the order of the comparison, the baseline first."""
        return list(self.table["scheme"])

    def rows(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of a long table with the scheme and the seed of their trial."""
        found = self.tables.read(table, columns, self.trials["trial"])
        ids = self.trials.set_index("trial")
        scheme, seed = (found["trial"].map(ids[key]) for key in ("scheme", "seed"))
        return found.assign(scheme=scheme.astype("category"), seed=seed.astype("int64"))

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """The data of the curves."""
        columns = ["epoch", "phase", "train_accuracy", "test_accuracy", "train_loss", "test_loss"]
        rows = self.rows("epochs", columns)
        return rows.assign(epoch=rows["epoch"] + 1)  # shown from 1

    @cached_property
    def drops(self) -> pd.DataFrame:
        """Every filter at every ranking, with the place of its layer in the network."""
        rows = self.rows("cycles", ["cycle", "event", "layer", "filter", "score", "dropped"])
        rows = rows[rows["event"] == "drop"]
        layers = {str(name): place for place, name in enumerate(rows["layer"].unique())}
        scheme = rows["scheme"].cat.remove_unused_categories()  # of schemes that renew or mask, and drop nothing
        return rows.assign(place=rows["layer"].map(layers).astype("int64"), scheme=scheme)

    def drawn(self, rows: pd.DataFrame) -> list[str]:
        """The schemes that some of the rows are of."""
        found = set(rows["scheme"].unique())
        return [scheme for scheme in self.schemes if scheme in found]
