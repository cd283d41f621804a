"""The contract with the bucket: keys, records, manifests, choosing, committing. No torch."""
