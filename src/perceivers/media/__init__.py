"""Loading and writing of media files as raw arrays, and drawing of arrays."""
