"""Work that is queued, the workers that do it, and the HTTP API."""
