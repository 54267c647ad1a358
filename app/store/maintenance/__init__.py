"""What operators do with the whole store: check, repair and copy it."""
