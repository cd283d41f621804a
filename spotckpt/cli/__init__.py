"""The command line: prints, decides nothing. No torch."""
