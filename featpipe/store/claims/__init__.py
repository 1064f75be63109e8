"""Who is at what, so that several writers divide the work."""
