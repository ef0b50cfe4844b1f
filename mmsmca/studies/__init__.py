"""Studies: what is compared, how it is run, what is reported."""
