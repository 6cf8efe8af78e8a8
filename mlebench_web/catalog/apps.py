from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate


class CatalogConfig(AppConfig):
    name = "mlebench_web.catalog"
    label = "catalog"

    def ready(self) -> None:
        post_migrate.connect(fill_catalog, sender=self)


def fill_catalog(*, using: str, **kwargs: Any) -> None:
    """Rows for what ships with the product, after every `migrate` and every flush in tests."""
    from mlebench_web.catalog import importer, models

    tables = connections[using].introspection.table_names()
    # Migrated backwards to nothing: there is no table to fill.
    if using == "default" and models.Competition._meta.db_table in tables:
        importer.sync_builtin()
