"""From batches to trained weights: loss, optimizer, loop, checkpoints."""
