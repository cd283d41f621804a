"""`spotckpt drill`: interrupts a training, restarts it, and compares it with one that nobody interrupted."""
