"""Exams as scanned, one or many: found, completed, written, sent."""
