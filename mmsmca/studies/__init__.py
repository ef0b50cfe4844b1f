"""Studies: definition and runs of experiments to compare, and reports on them."""
