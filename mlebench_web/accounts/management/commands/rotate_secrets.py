from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mlebench_web.accounts import vault


class Command(BaseCommand):
    help = "Seal every stored secret anew with a new key, and drop the keys before it."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = vault.rotate()
        except vault.Sealed as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{count} secrets are sealed with a new key in {vault.key_file()}.")
