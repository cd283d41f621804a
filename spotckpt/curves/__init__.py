"""The curves of runs: what is to be drawn, and drawing it in a terminal, as a picture and as a page."""
