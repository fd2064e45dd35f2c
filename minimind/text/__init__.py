"""What text alone tells."""
