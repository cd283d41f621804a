"""Checkpoints as files: a snapshot becomes a file that others read, and a file of others becomes a snapshot."""
