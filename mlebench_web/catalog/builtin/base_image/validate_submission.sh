#!/bin/bash
# Asks whether a submission has the right format. It gives no score.
set -u
if [ $# -ne 1 ]; then
    echo "Usage: $0 path/to/submission.csv" >&2
    exit 2
fi
if [ ! -f "$1" ]; then
    echo "There is no file $1." >&2
    exit 2
fi
server="${MLE_VALIDATION_URL:-http://localhost:5000}"
curl --silent --show-error --max-time 600 -F "file=@$1" "$server/validate"
status=$?
echo
exit $status
