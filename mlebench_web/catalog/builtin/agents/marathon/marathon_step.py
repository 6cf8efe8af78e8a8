"""One step in a process of its own: `marathon_step.py SECONDS [ignore]`. Can be killed alone."""

import signal
import sys
import time

if sys.argv[2:] == ["ignore"]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    # A shell lets what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

time.sleep(float(sys.argv[1]))
