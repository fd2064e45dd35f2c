"""Judge models by scores and by answers."""
