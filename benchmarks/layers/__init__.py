"""How long every layer of an engine takes, and how near it comes to this machine's peaks."""
