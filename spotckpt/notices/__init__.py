"""Where the news comes from that the machine will go. No torch."""
