from collections.abc import Iterator

import pytest

from tests.fuzz import cases


@pytest.fixture(autouse=True, scope="session")
def counted() -> Iterator[None]:
    yield
    cases.write_down()
