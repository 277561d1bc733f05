"""Whether layers keep entries together."""
