"""Upstream's own results, as far as they lie beside the checkout."""

from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from mlebench_web.catalog.models import Competition
from tests.conftest import SHARED, SHARED_IS_ABSENT

COMPETITIONS = Path(__file__).resolve().parent / "competitions"


@pytest.fixture
def golden() -> Path:
    if not SHARED.is_dir():
        pytest.skip(SHARED_IS_ABSENT)
    return SHARED / "golden"


@pytest.fixture
def cactus(db: None, golden: Path, settings: Settings) -> Competition:
    """Aerial cactus with the synthetic answers, and a grader written for these tests."""
    settings.COMPETITIONS_DIR = golden / "upstream-synthetic" / "data"
    name = "aerial-cactus-identification"
    competition, _ = Competition.objects.update_or_create(
        name=name,
        defaults={
            "title": "Aerial Cactus Identification",
            "is_lower_better": False,
            "gold_threshold": 1.0,
            "silver_threshold": 1.0,
            "bronze_threshold": 1.0,
            "median_threshold": 0.9991,
            "folder": str(COMPETITIONS / name),
            "answers_path": f"{name}/prepared/private/test.csv",
            "sample_submission_path": f"{name}/prepared/public/sample_submission.csv",
        },
    )
    return competition
