"""Everything that strangers write, made up by Hypothesis: no crash, and nothing wrong accepted.

CI tries some hundred cases of each in under a minute; `bench/fuzz.py` tries as many as asked.
"""
