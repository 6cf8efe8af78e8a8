"""Calls a competition's prepare(raw, public, private) in a process of its own.

python run_prepare.py COMPETITION_FOLDER RAW PUBLIC PRIVATE
"""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    folder, raw, public, private = (Path(argument) for argument in sys.argv[1:])
    sys.path.insert(0, str(folder))
    importlib.import_module("prepare").prepare(raw, public, private)
