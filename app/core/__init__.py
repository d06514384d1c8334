"""Share what every stage needs: constants, types, errors, options, atomic files, signals, startup."""
