"""A supervisor over one part, run as a process of its own by test_supervisor.py.

Arguments: data folder, then the part's command.
"""

import os
import signal
import sys
from pathlib import Path

from mlebench_web.launcher.supervisor import Stopped, Supervisor
from mlebench_web.launcher.terminal import Terminal

# Where the tests run as a shell's background job Ctrl-C is ignored, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
supervisor = Supervisor(Path(sys.argv[1]), dict(os.environ), Terminal(), {})
try:
    supervisor.start("part", sys.argv[2:])
    supervisor.forever()
except Stopped:
    pass
finally:
    supervisor.stop()
