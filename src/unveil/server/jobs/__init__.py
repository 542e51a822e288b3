"""What people leave running: the queue of everything that takes long, and those who work on it."""
