import signal

from django.core.management.base import BaseCommand

from runs.host_service import HostService


class Command(BaseCommand):
    help = "The process beside each worker: inventory, janitor, data, validation."

    def handle(self, *args: object, **options: object) -> None:
        service = HostService()
        signal.signal(signal.SIGTERM, service.stop)
        signal.signal(signal.SIGINT, service.stop)
        service.run()
