"""Small networks on top of a backbone that the loss sees and probes do not."""
