"""Large answers without holding them in memory, under ASGI and WSGI alike."""

from collections.abc import AsyncIterator, Iterable

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse


def streamed(
    request: HttpRequest, chunks: Iterable[bytes], *, content_type: str, filename: str
) -> StreamingHttpResponse:
    """A download of what a hostile program wrote: an attachment, and never a page of ours."""
    # Under ASGI Django reads a plain iterator to its end before it sends the first byte.
    content = _one_by_one(chunks) if isinstance(request, ASGIRequest) else chunks
    response = StreamingHttpResponse(content, content_type=content_type)
    safe = "".join(letter for letter in filename if letter.isalnum() or letter in "._-") or "file"
    response["Content-Disposition"] = f'attachment; filename="{safe}"'
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["X-Content-Type-Options"] = "nosniff"
    return response


async def _one_by_one(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    iterator = iter(chunks)

    def following() -> bytes | None:
        return next(iterator, None)

    while (chunk := await sync_to_async(following)()) is not None:
        yield chunk
