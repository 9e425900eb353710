"""Which patches a network does not see: one file per sampler."""
