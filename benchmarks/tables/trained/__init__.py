"""The papers' accuracy tables: what they print, and beside it what our training records say."""
