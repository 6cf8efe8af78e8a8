"""The Django project: wiring, and who (accounts), what (catalog) and where (fleet)."""

from mlebench_web.celery import app as celery_app

__all__ = ["celery_app"]
__version__ = "0.1.0"
