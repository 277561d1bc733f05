"""What becomes of entries that leave."""
