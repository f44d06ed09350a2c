"""One thread, the same examples every time, and no deadline: these networks are tiny and the machine may be busy."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("method", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("method")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
