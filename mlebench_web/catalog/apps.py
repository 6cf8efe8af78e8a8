from django.apps import AppConfig


class CatalogConfig(AppConfig):
    name = "mlebench_web.catalog"
    label = "catalog"
