import os
from pathlib import Path

import pytest


@pytest.fixture
def real_checkout() -> Path:
    """An mle-bench checkout of the developer's, where MLEBENCH_DIR names one."""
    named = os.environ.get("MLEBENCH_DIR", "").split(os.pathsep)[0]
    if not named:
        pytest.skip("MLEBENCH_DIR names no checkout of mle-bench")
    return Path(named)
