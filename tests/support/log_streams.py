"""What is stored of an attempt's log."""

from django.core.files.storage import default_storage

from runs.models import Attempt, LogSegment


def stream(attempt: Attempt, source: str = LogSegment.Source.AGENT) -> bytes:
    """What the rows and objects hold, checked to be without gaps and overlaps."""
    data, line = b"", 1
    for row in LogSegment.objects.filter(attempt=attempt, source=source).order_by("first_byte"):
        assert (row.first_byte, row.first_line) == (len(data), line)
        with default_storage.open(row.path) as segment:
            content = segment.read()
        assert (len(content), content.count(b"\n")) == (row.length, row.line_count)
        data += content
        line += row.line_count
    return data
