"""Where the bytes of a cache lie, and how they come to where attention reads them."""
