"""The run itself, from form to leaderboard. Read the modules in this order:

forms           1   what a person asks for on the page
request         1a  the same for page, API and shell: names looked up, limits checked
preflight       1b  what would stop it
submit          2   request -> experiment, run group, runs, attempts; re-run; cancel
models          3   Experiment > RunGroup > Run > Attempt; the one door for state
queue           4   what this host does next: adopt, claim; and the reaper
tasks           5   Celery entry points: the bell, the control tick
host_service    5b  the process beside each worker: inventory, janitor, validation
worker          6   supervise one attempt: start, watch, collect, grade, seal
workspace       6b  folders of an attempt; safe reading of what a hostile program left
snapshots       6c  the submission as it stood: what a broken run falls back to
containers      7   engines: docker, process; relay.py runs inside the container
logs            7b  log segments: redact, ship, merge, read
grading         8   submission -> grader in its own process -> grading report
leaderboard     9   grading reports of an experiment -> one row, with hardware and time
core                the rules, pure: no Django, no clock, no I/O
"""
