"""At which position kept entries are read."""
