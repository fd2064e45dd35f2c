"""Part good rows from bad ones."""
