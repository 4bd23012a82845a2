"""Models, data and training for small vision transformers. Knows nothing of Ray, HTTP or the command line."""
