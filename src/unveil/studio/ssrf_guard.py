"""Nothing is fetched for who asks: Gradio would, from addresses in its file route and in files that requests name.

It refuses addresses of this network by their numbers, asks a public resolver for them where it knows no better, and
fetches all others. A server that takes no addresses has nothing to look up and nothing to fetch.
"""

from __future__ import annotations

import httpx
from gradio import processing_utils


class Shut(httpx.AsyncBaseTransport):
    """Goes nowhere."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Refuses every request.

        Raises:
            httpx.UnsupportedProtocol: always.
        """
        raise httpx.UnsupportedProtocol(
            f"{request.url}: nothing is fetched from an address; send the file", request=request
        )


def shut() -> None:
    """Takes from Gradio, in this process, its way of fetching files that a request names by an address."""
    processing_utils.async_transport = Shut()


def is_address(path: str) -> bool:
    """Whether a path of the page names something elsewhere, such as /en/gradio_api/file=https://host/file."""
    return "://" in path
