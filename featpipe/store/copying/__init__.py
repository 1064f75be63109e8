"""Arrays from one cache to another, checked on arrival, and the list of a published cache."""
