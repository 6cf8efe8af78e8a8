#!/bin/bash
# The entrypoint of Dockerfile.root hunts as root at the same time; the run ends after both.
python3 -I -S /home/agent/probe.py /home/code/agent.json
if [ -e /home/agent/entrypoint.sh ]; then
    until [ -e /home/code/root.json ]; do sleep 0.2; done
fi
