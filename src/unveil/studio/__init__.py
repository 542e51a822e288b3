"""The page in the browser: a thin client of the service, which keeps nothing of its own."""
