"""What runs inside the trainer: capture, staging, restore, the run and the decorator."""
