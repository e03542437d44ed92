from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest

from tests.pipeline.split import stand_ins


@pytest.fixture(autouse=True, scope="package")
def _all_architectures_run() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.install(patch)
        yield


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    mx.clear_cache()
