"""A competition of four rows with real data and a real grader, for runs that end in seconds."""

from pathlib import Path

from django.conf import settings

from mlebench_web.catalog.models import Competition

FOLDER = Path(__file__).parent / "competition"
ANSWERS = "id,price\n1,1.0\n2,2.0\n3,3.0\n4,4.0\n"
SAMPLE = "id,price\n1,0\n2,0\n3,0\n4,0\n"
# Exactly right: a mean absolute error of 0, a gold medal.
PERFECT = ANSWERS


def make() -> Competition:
    """The row, its folder and its prepared data below COMPETITIONS_DIR."""
    home = Path(settings.COMPETITIONS_DIR) / "test-prices" / "prepared"
    for part, name, text in (
        ("public", "sample_submission.csv", SAMPLE),
        ("public", "description.md", "Predict the price.\n"),
        ("private", "test.csv", ANSWERS),
    ):
        (home / part).mkdir(parents=True, exist_ok=True)
        (home / part / name).write_text(text)
    competition, _ = Competition.objects.update_or_create(
        name="test-prices",
        defaults={
            "title": "Test prices",
            "is_demo": True,
            "metric": "mean absolute error",
            "is_lower_better": True,
            "gold_threshold": 0.1,
            "silver_threshold": 0.2,
            "bronze_threshold": 0.4,
            "median_threshold": 0.55,
            "folder": str(FOLDER),
            "answers_path": "test-prices/prepared/private/test.csv",
            "sample_submission_path": "test-prices/prepared/public/sample_submission.csv",
        },
    )
    return competition
