"""Locks of a machine that is gone are let go."""

import pytest
from django.db import connection


@pytest.mark.django_db
def test_a_transaction_of_a_machine_that_stands_still_ends_on_the_server() -> None:
    """Else the control worker would wait for its locks as long as the kernel does: two hours."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            assert cursor.fetchone() == ("5min",)
        else:
            # Locks of a file go with their process; nothing is told to it.
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
