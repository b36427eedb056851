"""Media files, loaded as raw arrays and written, and drawing of arrays."""
