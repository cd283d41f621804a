"""Whether this machine, that bucket and a state of that size fit together; no torch."""
