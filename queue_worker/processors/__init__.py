"""The built-in processors."""
