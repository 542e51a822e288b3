"""Components of the playground: objects, motion, scenes, rendering and captions."""
