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

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
