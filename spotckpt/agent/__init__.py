"""The agent: a process of its own that claims, uploads, commits and watches for notices. No torch."""
