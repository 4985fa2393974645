"""COCO data to arrays: read, verify, paint, cache, split, augment, load."""
