"""The model chain: what a decoder is, how it computes, and how its weights are stored."""
