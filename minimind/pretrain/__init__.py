"""Pretrain a small model on text."""
