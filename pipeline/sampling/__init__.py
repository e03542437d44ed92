"""Parts of the sampler: noise keyed by (seed, position), edits of logits, filters, log
probabilities."""
