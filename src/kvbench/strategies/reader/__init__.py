"""What of the entries a decode step reads."""
