"""Between protos and the domain: what reporting serves, and the feeds that it reads."""
