"""Training after pruning: fine-tuning and re-estimated normalisation statistics."""
