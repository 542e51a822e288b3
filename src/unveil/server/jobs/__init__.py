"""Jobs: a durable queue, the workers that run its tasks, uploads and output files."""
