"""Trial folders on disk, gathered into four tidy Parquet tables.

| table | a row is |
|---|---|
| `trials` | a trial: what it was, how far it came, its last and best figures |
| `epochs` | a finished epoch of a trial |
| `layers` | a layer of a trial in an epoch: mean off-diagonal overlap of its filters, how many are dropped |
| `cycles` | a filter of a layer when filters are dropped or re-initialised |

Losses are nats per image, accuracies fractions from 0 to 1, times seconds. Epochs, cycles and filters count from 0,
as the metadata of the files say; tables, pictures and messages count from 1.
"""

from repr_ray.results.store.folders import UNFINISHED, Failure, failures
from repr_ray.results.store.gather import Tables, gather
from repr_ray.results.store.schemas import SCHEMAS, VERSION
