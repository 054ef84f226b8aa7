"""Other libraries: what is replaced in their modules."""
