"""Tasks: one class per task, in a registry that packages can extend."""

NAME = "name"  # the key of a task's name in metadata
