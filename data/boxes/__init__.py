"""Photographs with annotated boxes: CrowdHuman, COCO, MOT."""
