"""Web page to try a detector: scoring, display, page; see `zsad demo`."""
