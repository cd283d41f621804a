"""`spotckpt demo`: an interrupted training against an uninterrupted one, on this machine."""
