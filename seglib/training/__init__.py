"""Losses, optimizers, the training loop, checkpoints."""
