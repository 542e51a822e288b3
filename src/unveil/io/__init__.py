"""Files, images and videos on disk; child processes with limits."""
