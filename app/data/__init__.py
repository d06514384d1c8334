"""Find subjects on disk; read and write NIfTI, label maps and a phantom."""
