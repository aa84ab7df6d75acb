"""The stages composed: with the command line, the only place where they meet."""
