"""What is done with a trained model: the same for the command line, a program and a server."""
