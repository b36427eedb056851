"""Files: what may be read, and how they are written whole."""
