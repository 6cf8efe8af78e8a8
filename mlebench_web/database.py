"""What each connection to PostgreSQL is told, beside settings.DATABASES.

A machine that stops in the middle of a transaction, frozen or without power, leaves its locks with
the server: for two hours by the kernel's own patience, and the control worker would wait for them.
"""

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.dispatch import receiver

# None of our transactions does anything else for so long; well within HOST_LOST_AFTER.
IDLE_SECONDS = 300
# Not among the connection's parameters: a pooler in between may refuse those.
ASK_OF_POSTGRESQL = f"""\
SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s';
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 2
"""


@receiver(connection_created)
def let_go_of_the_dead(connection: BaseDatabaseWrapper, **_: Any) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(ASK_OF_POSTGRESQL)
