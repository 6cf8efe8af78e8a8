#!/usr/bin/env python
"""Django's command line. `./run` finds the right Python; this file expects it."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlebench_web.settings")
    # `--data DIR` means the same to every command as MLEBENCH_WEB_DATA; settings read the variable.
    if "--data" in sys.argv:
        at = sys.argv.index("--data")
        if at + 1 >= len(sys.argv):
            sys.exit("--data needs a folder: --data DIR")
        os.environ["MLEBENCH_WEB_DATA"] = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError

    try:
        execute_from_command_line(sys.argv)
    except DatabaseError as error:
        if "migrate" in sys.argv[1:2] or not lacks_tables(error):
            raise
        sys.exit(f"The database has no tables of this version ({error}): run migrate first.")


def lacks_tables(error: Exception) -> bool:
    """Whether a table or a column is not there yet: SQLite's words, PostgreSQL's classes."""
    cause = type(error.__cause__).__name__
    return cause in ("UndefinedTable", "UndefinedColumn") or str(error).startswith(
        ("no such table", "no such column", "table ")
    )


if __name__ == "__main__":
    main()
