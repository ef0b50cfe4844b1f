"""Reports on studies, from what MMEngine's runner left on disk."""
