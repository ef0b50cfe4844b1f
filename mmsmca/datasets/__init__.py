"""Generated data, and COCO's annotation files and images read with care."""
