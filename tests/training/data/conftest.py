"""Two small subjects, on disk and cached, that the tests of the data share."""

from __future__ import annotations

import pytest

from app.data.phantom import make_phantom, write_phantom
from app.training.data.cache import build_cache


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        write_phantom(make_phantom((40, 44, 36), seed), folder, f"s{seed}")
    return folder


@pytest.fixture(scope="session")
def subjects(data, tmp_path_factory):
    return build_cache(data, tmp_path_factory.mktemp("cache"))
