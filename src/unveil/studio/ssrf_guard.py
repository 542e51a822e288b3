"""Guard against server-side request forgery: Gradio would fetch URLs from its file route and from request data.

Gradio refuses only addresses that it knows to be private, may ask a public resolver about others, and fetches the rest.
This server accepts no URLs, so that it resolves and fetches nothing.
"""

from __future__ import annotations

import httpx
from gradio import processing_utils


class BlockedTransport(httpx.AsyncBaseTransport):
    """Transport that refuses every request."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Refuse the request.

        Raises:
            httpx.UnsupportedProtocol: Always.
        """
        raise httpx.UnsupportedProtocol(f"{request.url}: URLs are not fetched; upload the file", request=request)


def disable_url_fetch() -> None:
    """Replace Gradio's transport in this process, so that it fetches no URLs named by requests."""
    processing_utils.async_transport = BlockedTransport()


def names_url(path: str) -> bool:
    """Return True if a path of the page contains a URL, such as /en/gradio_api/file=https://host/file."""
    return "://" in path
