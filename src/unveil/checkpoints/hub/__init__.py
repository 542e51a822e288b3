"""Models of a hub that speaks the protocol of huggingface.co: what a repository holds, verified downloads, uploads."""
