"""How long engines take: races, their verdicts and their records."""
