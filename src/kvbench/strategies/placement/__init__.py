"""Where the bytes of a cache lie."""
