"""ControlNet preprocessors: the functions that make a control image from an image."""
