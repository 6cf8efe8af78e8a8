"""The Celery application. Its messages are bells; the database knows what to do."""

import os

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlebench_web.settings")
# SIGTERM must let go of attempts, not wait 24 hours for them (Celery's warm shutdown).
os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")

app = Celery("mlebench_web")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["runs"])


@setup_logging.connect
def keep_our_logging(**_: object) -> None:
    """Connected, so that Celery leaves the loggers as Django has set them up."""
