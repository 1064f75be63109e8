"""Arrays found, described, opened for other libraries and exported; leftovers found and removed."""
