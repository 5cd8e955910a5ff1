"""Pretraining: tokenizers, and the twins I-WALT and V-WALT on the latents of one."""
