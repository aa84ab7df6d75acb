"""Other papers' ways to learn from a teacher or a peer: FitNets, DML, NST, AT and AB."""
