"""From a configuration to a model on a device."""
