"""Linear layers on spike counts."""
