"""Reports on studies, from the files that MMEngine's runner writes."""
