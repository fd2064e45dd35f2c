"""Talk with a model in a terminal."""
