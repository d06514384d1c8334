"""What every stage needs and nothing of the field's libraries: constants, types, errors, options, files, signals."""
