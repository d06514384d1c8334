"""Run the subjects of a folder on several workers: what Ray does for it, and what is decided here."""
