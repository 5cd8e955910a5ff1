"""Tables on disk: clips, latents, features and targets, and the cache that keeps them."""
