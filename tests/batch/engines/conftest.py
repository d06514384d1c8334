from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.batch.engines.ray_session import ray_session


@pytest.fixture(scope="class")
def shared_ray(ray_package: Any) -> Iterator[Any]:
    """One local cluster of two cores for the tests of a class: starting one takes longer than they do."""
    with ray_session(ray_package, None, cores=2):
        yield ray_package
