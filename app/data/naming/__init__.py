"""Read names of files and folders: which sequence, of which subject, in which version."""
