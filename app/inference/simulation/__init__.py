"""Exams made of a lesion's outline: atlas, lesions, slices and volumes (`docs/simulation.md`)."""
