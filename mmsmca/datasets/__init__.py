"""Generated detection sets in COCO's format."""
