"""DICOM: series found, named and read."""
