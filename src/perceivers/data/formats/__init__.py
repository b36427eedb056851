"""File formats of tables and texts: to rows and documents, and back."""
