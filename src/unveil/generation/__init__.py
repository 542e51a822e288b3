"""Generation with a trained model, shared by the command line, Python programs and the server."""
