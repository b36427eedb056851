"""Files: safe loading of untrusted files, and atomic writing."""
