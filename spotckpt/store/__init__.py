"""Bytes in a bucket: a few verbs over fsspec. Knows no snapshot."""
