"""One step in a process of its own: `marathon_step.py SECONDS`. Can be killed alone."""

import sys
import time

time.sleep(float(sys.argv[1]))
