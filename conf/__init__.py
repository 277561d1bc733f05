"""The configuration tree; packaged as kvbench.conf, so that an installed kvbench finds it."""
