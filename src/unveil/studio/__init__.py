"""The page in the browser: a thin client of the service, which has no state."""
