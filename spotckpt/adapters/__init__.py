"""Interfaces of other checkpoint packages, over spotckpt."""
