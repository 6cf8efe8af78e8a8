"""What the logs of our own processes show of refusals."""

import logging

import pytest
from django.core.exceptions import PermissionDenied

from mlebench_web.logs import RefusalsAreNoFaults


@pytest.mark.parametrize(
    ("error", "message", "has_traceback"),
    [
        (PermissionDenied("Ask a lead."), "Forbidden: /fleet/: Ask a lead.", False),
        (ValueError("boom"), "Forbidden: /fleet/", True),
    ],
)
def test_a_refusal_is_a_line_with_its_reason_and_no_traceback(
    error: Exception, message: str, has_traceback: bool
) -> None:
    try:
        raise error
    except type(error):
        record = logging.LogRecord(
            "django.request", logging.WARNING, __file__, 1, "Forbidden: %s", ("/fleet/",), None
        )
        record.exc_info = (type(error), error, error.__traceback__)

    assert RefusalsAreNoFaults().filter(record)

    assert record.getMessage() == message
    assert bool(record.exc_info) == has_traceback
