"""Linear attention: recurrences over key-value memories."""
