"""The playground's parts: how things move, what happens in a video, how it is drawn and how it is told."""
