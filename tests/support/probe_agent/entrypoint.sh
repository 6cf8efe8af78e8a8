#!/bin/bash
exec >> /home/logs/entrypoint.log 2>&1
chmod a+rwX /home/submission /home/logs /home/code
python3 -I -S /private/grading_server.py &
python3 -I -S /home/agent/probe.py /home/code/root.json
wait
