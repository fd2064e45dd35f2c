"""Show what a file of conversations trains."""
