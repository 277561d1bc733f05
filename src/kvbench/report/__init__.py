"""Results as one page that a colleague can open: no network, no server, nothing beside the file."""
