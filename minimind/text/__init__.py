"""What can be found out from text alone."""
