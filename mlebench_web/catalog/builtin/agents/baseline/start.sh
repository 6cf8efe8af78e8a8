#!/bin/bash
# Trains gradient boosting on what lies in the data folder. No arguments, no network.
set -eu
cd "$(dirname "$0")"
exec python3 baseline.py
