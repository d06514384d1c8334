"""Draw pictures and pages of results. matplotlib is imported by the functions that need it."""
