"""Every byte of a cache looked at, and what is damaged told apart and made good."""
