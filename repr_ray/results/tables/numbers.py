"""The bare numbers of a comparison, as CSV and Parquet."""

from pathlib import Path

import pandas as pd

import repr_ray
from repr_ray.results.files import MARK, replacing, write_text
from repr_ray.results.store import SCHEMAS
from repr_ray.storage.text import cell


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """The bare numbers, with the version of this package in the last column; no cell is a formula."""
    versioned = table.assign(**{f"{MARK}_version": repr_ray.__version__})
    for name in versioned.select_dtypes(exclude="number"):
        versioned[name] = versioned[name].map(cell, na_action="ignore")
    write_text(path, versioned.to_csv(index=False, lineterminator="\n"))


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """The bare numbers with the version of the tables as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = (arrow.schema.metadata or {}) | (SCHEMAS["trials"].metadata or {})
    with replacing(path) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary)
