"""The playground: a procedural world of moving shapes with captions, and the detector that reads it back."""
