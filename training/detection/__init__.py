"""How detectors learn: crops with boxes, which cell learns which person, and its losses."""
