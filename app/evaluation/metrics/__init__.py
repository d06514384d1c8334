"""Image scores as pure functions on arrays; torch is not needed."""
