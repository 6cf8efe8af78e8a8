"""Stands in for mle-bench's package where that is not installed: what graders import from it."""
