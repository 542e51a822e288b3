"""Videos in files: read in a process of their own, with limits, and written whole or not at all."""
