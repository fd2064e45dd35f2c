"""The data chain: files of conversations to batches of tokens. One module for each step."""
