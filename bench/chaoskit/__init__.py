"""The parts of bench/chaos.py: a small fleet, faults against it, and what must hold nonetheless."""
